# The book's commands. Only GNU make and Python 3.11-3.13 are needed; everything else goes into .venv.
# JOBS=1 runs chapters and tests one after the other; otherwise as many as there are processors.
SHELL := /bin/sh
.SHELLFLAGS := -ec
export PYTHON JOBS
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup book pdf test mutants bench run serve chapter notebooks lint fmt lock clean

help: ## show these commands
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## make or refresh .venv (the other commands do it by themselves)
	@sh tools/python.sh tools/environment.py

book: setup ## execute the chapters and render the book into _build/html
	@$(RUN) tools/build_book.py

pdf: book ## print the book into _build/html/llm-math.pdf (needs Chromium and chromedriver)
	@$(RUN) tools/make_pdf.py

test: setup ## everything that CI checks; ONLY=lint,types runs some stages
	@$(RUN) tools/check.py $(if $(ONLY),--only $(ONLY))

mutants: setup ## plant N faults and see which the tests find; SEED=0, ONLY=companion/core, GO_ON=1
	@$(RUN) tools/mutants.py -n $(or $(N),40) --seed $(or $(SEED),0) $(if $(ONLY),--only $(ONLY)) \
		$(if $(GO_ON),--go-on)

bench: ## time the library against its peers; ONLY=attention, DEVICE=cuda
	@sh tools/python.sh tools/bench.py $(if $(ONLY),--only $(ONLY)) $(if $(DEVICE),--device $(DEVICE))

run: setup ## repeat a long training run and store its curves: NAME=masked_bert
	@$(RUN) "book/_runs/$(NAME).py"

serve: book ## build, then show the book at http://localhost:8000 (PORT=...)
	@$(RUN) -m http.server --bind 127.0.0.1 --directory _build/html $(or $(PORT),8000)

chapter: setup ## execute one chapter: CH=foundations/embeddings
	@$(RUN) tools/build_book.py --chapter "$(CH)"

notebooks: setup ## write the executed chapters as notebooks for any editor, into _build/notebooks
	@$(RUN) tools/build_book.py --notebooks

lint: setup ## check the style and the types
	@$(RUN) tools/check.py --only lint,types

fmt: setup ## format the code
	@$(RUN) -m ruff check --fix companion tests tools benchmarks book/_ext book/_runs
	@$(RUN) -m ruff format companion tests tools benchmarks book/_ext book/_runs

lock: setup ## resolve the dependencies anew into requirements/lock.txt (KEEP=1 only adds, PYTHONS="...")
	@$(RUN) tools/lock.py $(PYTHONS) $(if $(KEEP),--keep)

clean: ## remove what was built (not .venv)
	rm -rf _build dist
