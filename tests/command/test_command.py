"""The command from end to end: a text becomes a model that two libraries read, and that writes."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from companion import data
from companion.command import main
from companion.command._corpus import read_documents, split
from companion.core import generator
from companion.generation.decoding import Pipeline
from companion.models import load_pretrained, sample
from companion.pretraining.autoregressive import PackedTokens, text_log_probs

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parents[2]
SETTINGS = [
    *("--dim", "24", "--layers", "2", "--heads", "3", "--kv-heads", "1", "--ff-dim", "61"),
    *("--context", "32", "--vocab", "311", "--batch", "6", "--steps", "24", "--lr", "0.01"),
    *("--save-every", "5", "--device", "cpu"),
]
SECONDS = 400


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "play.txt"
    path.write_bytes(data.shakespeare()[:30_000].encode("utf-8"))
    return path


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    assert main(["train", str(text), "--out", str(out), *SETTINGS]) == 0
    return out


def command(*arguments, launcher=()):
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "companion", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=ROOT,
    )


def log_of(out):
    return json.loads((out / "training_log.json").read_text(encoding="utf-8"))


def test_training_lowers_the_bits_per_byte(trained):
    log = log_of(trained)
    assert len(log["loss"]) == 24
    curve = [bits for _, bits in log["held_out_bits_per_byte"]]
    assert curve[-1] < 0.85 * curve[0]
    # A byte of English letters drawn by their frequencies has more than 4 bits.
    assert curve[-1] < 4.5
    assert log["parameters"] == sum(p.numel() for p in load_pretrained(trained).model.parameters())


def test_the_bits_per_byte_are_those_of_the_model_on_the_end_of_the_text(trained, text):
    loaded = load_pretrained(trained)
    _, held = split(read_documents([text]), share=0.05)
    assert text.read_text(encoding="utf-8").endswith(held[0])
    assert 1000 < len(held[0]) < 2000
    ids = torch.tensor(loaded.tokenizer.encode(held[0]).ids)
    with torch.no_grad():
        nats = -text_log_probs(loaded.model, ids, start=loaded.start, stride=32).sum()
    bits = float(nats) / torch.tensor(2.0).log().item() / len(held[0].encode("utf-8"))
    assert log_of(trained)["held_out_bits_per_byte"][-1][1] == pytest.approx(bits, rel=1e-5)


def test_transformers_reads_the_model_and_the_tokenizer(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(trained, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    ours = load_pretrained(trained)
    line = "Speak.\n  ü 中"
    ids = tokenizer(line, return_tensors="pt").input_ids
    assert ids[0].tolist() == ours.tokenizer.encode(line).ids
    assert tokenizer.decode(ids[0]) == line
    assert tokenizer.eos_token == "<|endoftext|>"
    with torch.no_grad():
        torch.testing.assert_close(ours.model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
        written = theirs.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert ours.tokenizer.decode(written[0, ids.shape[1] :].tolist()) == ours.continue_text(
        line, tokens=5
    )


def test_generate_continues_a_prompt(trained, capsys):
    def write(*more):
        assert main(["generate", str(trained), "--device", "cpu", "--tokens", "40", *more]) == 0
        return capsys.readouterr().out

    first = write("--prompt", "First Citizen:", "--seed", "3")
    assert first.startswith("First Citizen:")
    assert len(first) > len("First Citizen:\n") + 5
    assert write("--prompt", "First Citizen:", "--seed", "3") == first
    assert write("--prompt", "First Citizen:", "--seed", "4") != first
    likely = write("--prompt", "First Citizen:", "--temperature", "0", "--tokens", "9")
    assert likely.removeprefix("First Citizen:")[:-1] == load_pretrained(trained).continue_text(
        "First Citizen:", tokens=9
    )
    assert len(write("--tokens", "150")) > 100  # without a prompt, and beyond the context


def test_generate_obeys_an_expression_and_a_schema(trained, tmp_path, capsys):
    words = ("--prompt", "Born: ", "--tokens", "60", "--device", "cpu")
    date = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
    for more in (("--temperature", "0"), ("--top-p", "0.9", "--stream"), ("--seed", "3")):
        assert main(["generate", str(trained), *words, "--regex", date, *more]) == 0
        assert re.fullmatch(f"Born: {date}", capsys.readouterr().out.strip())
    members = {"name": {"type": "string", "maxLength": 9}, "old": {"type": "boolean"}}
    flat = {"type": "object", "properties": members, "required": ["name", "old"]}
    tree = {"type": "array", "items": {"$ref": "#"}, "maxItems": 3}
    for number, schema in enumerate((flat, tree, True)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(schema))
        for seed in "12":
            told = ["--json-schema", str(path), "--tokens", "70", "--seed", seed]
            assert main(["generate", str(trained), "--prompt", "A:", "--device", "cpu", *told]) == 0
            value = json.loads(capsys.readouterr().out.strip()[2:])
            if number == 0:
                assert isinstance(value["name"], str)
                assert value["old"] in (True, False)
                assert len(value["name"]) <= 9
            elif number == 1:
                assert isinstance(value, list)


def test_a_constraint_that_cannot_be_met_is_refused_before_the_first_token(
    trained, tmp_path, capsys
):
    path = tmp_path / "schema.json"
    path.write_text('{"type": "integer", "minimum": 3}')
    words = ("generate", trained, "--device", "cpu")
    assert "'minimum' is not supported" in refused(capsys, *words, "--json-schema", path)
    path.write_text("{")
    assert "is not JSON" in refused(capsys, *words, "--json-schema", path)
    path.write_text("[" * 100_000)
    assert "nested too deeply" in refused(capsys, *words, "--json-schema", path)
    assert "there is no file" in refused(capsys, *words, "--json-schema", tmp_path / "none")
    assert "not both" in refused(capsys, *words, "--json-schema", path, "--regex", "a")
    assert "is not closed" in refused(capsys, *words, "--regex", "(a")
    assert "at most 4 tokens" in refused(capsys, *words, "--regex", "[0-9]{40}", "--tokens", 4)
    assert "--no-repeat-ngram" in refused(capsys, *words, "--regex", "a", "--no-repeat-ngram", 2)


def test_generate_takes_samplers_and_streams(trained, capsys):
    def write(*more):
        words = ["--prompt", "First Citizen:", "--tokens", "40", "--seed", "3"]
        assert main(["generate", str(trained), "--device", "cpu", *words, *more]) == 0
        return capsys.readouterr().out

    plain = write("--temperature", "2")
    assert write("--temperature", "2", "--stream") == plain
    greedy = write("--temperature", "0")
    assert write("--temperature", "2", "--top-k", "1") == greedy
    assert write("--temperature", "2", "--top-p", "1e-9") == greedy
    assert write("--temperature", "2", "--min-p", "1") == greedy
    assert write("--temperature", "1e-45", "--top-k", "5") == greedy
    for words in (["--typical", "0.1"], ["--top-k", "3"], ["--repetition-penalty", "5"]):
        assert write("--temperature", "2", *words) != plain
    # Together they are a pipeline: penalties, temperature, truncations.
    loaded = load_pretrained(trained)
    warp = Pipeline(no_repeat_ngram=2, temperature=1.5, top_k=7, top_p=0.9)
    pick = sample(generator=generator(3), warp=warp)
    expected = loaded.continue_text("First Citizen:", tokens=9, pick=pick)
    words = ["--no-repeat-ngram", "2", "--temperature", "1.5", "--top-p", "0.9", "--top-k", "7"]
    told = write(*words, "--tokens", "9")
    assert told == f"First Citizen:{expected}\n"


def test_a_killed_run_goes_on_to_the_same_model(trained, text, tmp_path, capsys):
    words = ["train", str(text), "--out", str(tmp_path / "model"), *SETTINGS, "--report-every", "1"]
    with command(*words) as started:
        for line in started.stdout:
            if line.startswith("step 12/"):
                started.send_signal(signal.SIGKILL)
                break
        started.communicate()
    assert started.returncode == -signal.SIGKILL
    assert main(["generate", str(tmp_path / "model")]) == 2
    assert "its training is not finished" in capsys.readouterr().err

    assert main(words) == 0
    assert re.search(r"going on after step 1\d\n", capsys.readouterr().out)
    straight, resumed = log_of(trained), log_of(tmp_path / "model")
    for name in ("loss", "grad_norm", "held_out_bits_per_byte"):
        assert resumed[name] == straight[name]
    first, second = (load_file(o / "model.safetensors") for o in (trained, tmp_path / "model"))
    assert all(torch.equal(first[name], second[name]) for name in first)

    # Once more: it is finished, and stays as it is.
    assert main(words) == 0
    assert log_of(tmp_path / "model")["loss"] == straight["loss"]


def test_two_processes_train_the_model_of_one(trained, text, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = tmp_path / "model"
    words = ["train", text, "--out", out, *SETTINGS, "--parallel", "fsdp", "--accumulate", "3"]
    with command(*words, launcher=launcher) as started:
        said, complained = started.communicate(timeout=SECONDS)
    assert started.returncode == 0, complained
    assert len(re.findall("step 24/24", said)) == 1  # process 0 alone reports
    one, two = log_of(trained), log_of(out)
    assert two["processes"] == 2
    # In float32, and sums in another order: a few units of the last place, grown over 24 steps.
    torch.testing.assert_close(
        torch.tensor(two["loss"]), torch.tensor(one["loss"]), rtol=1e-4, atol=1e-4
    )
    for (_, bits), (_, expected) in zip(
        two["held_out_bits_per_byte"], one["held_out_bits_per_byte"], strict=True
    ):
        assert bits == pytest.approx(expected, rel=1e-4)
    assert load_pretrained(out).continue_text("The ", tokens=3)


def test_several_texts_dropout_bfloat16_and_a_given_tokenizer(trained, text, tmp_path):
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    shutil.copy(text, folder / "b.txt")
    (folder / "inner" / "a.txt").write_text("短い文。<|endoftext|> is text here.\r\n" * 40)
    (folder / "notes.md").write_bytes(b"\xff not read")
    out = tmp_path / "model"
    words = ["train", str(folder), "--out", str(out), *SETTINGS, "--steps", "4", "--warmup", "0"]
    words += ["--dropout", "0.1", "--bf16", "--recompute", "--accumulate", "2"]
    words += ["--tokenizer", str(trained / "tokenizer.json")]
    assert main(words) == 0
    corpus = json.loads((out / "run" / "corpus.json").read_text())
    held = torch.from_file(
        str(out / "run" / "held_out.bin"), size=corpus["held_out_tokens"], dtype=torch.uint16
    ).tolist()
    loaded = load_pretrained(out)
    kept, left = split(read_documents([folder]), share=0.05)
    assert held.count(corpus["end"]) == len(left) == 2  # what only looks like it is text
    assert loaded.tokenizer.decode(held) == "".join(left)
    assert "".join(kept + left).count("\r\n") == 40
    assert len(PackedTokens(torch.tensor(held), context=4, batch=1).ids) == len(held)
    assert loaded.model.config.dropout == 0.0


def refused(capsys, *arguments):
    """The one line that is said about a request that cannot be carried out."""
    assert main([str(word) for word in arguments]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def test_bad_requests_get_one_clear_line(trained, text, tmp_path, capsys):
    new = tmp_path / "new"

    def train(path, *more, out=new):
        return refused(capsys, "train", path, "--out", out, *SETTINGS, *more)

    assert train(tmp_path / "no.txt").startswith("companion train: ")
    assert "no.txt does not exist" in train(tmp_path / "no.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    assert "the text is empty" in train(tmp_path / "empty.txt")
    (tmp_path / "short.txt").write_text("Too short.")
    assert "do not fill one block" in train(tmp_path / "short.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "latin.txt is not UTF-8 text" in train(tmp_path / "latin.txt")
    (tmp_path / "folder").mkdir()
    assert "holds no .txt file" in train(tmp_path / "folder")
    assert "--steps must be 1 or more, got 0" in train(text, "--steps", "0")
    assert "--lr must be above 0, got -1.0" in train(text, "--lr", "-1")
    assert "--warmup must lie in" in train(text, "--warmup", "24")
    assert "kv_heads must divide heads" in train(text, "--kv-heads", "2")
    assert "must lie in [0, 1), got 1.0" in train(text, "--held-out", "1")
    assert "a vocabulary needs 256 bytes" in train(text, "--vocab", "100")
    assert "cannot be shared by 1 processes with 4" in train(text, "--accumulate", "4")
    assert "'ddp' needs processes" in train(text, "--parallel", "ddp", out=tmp_path / "other")
    assert "is not a tokenizer.json" in train(text, "--tokenizer", text, out=tmp_path / "third")
    assert "is not empty and holds no run" in train(text, out=text.parent)
    assert "another lr (0.01, now 0.02)" in train(text, "--lr", "0.02", out=trained)
    assert "another text" in train(trained / "sample.txt", out=trained)
    assert "holds no model: give a folder" in refused(capsys, "generate", tmp_path)
    assert "--tokens must be 1 or more" in refused(capsys, "generate", trained, "--tokens", 0)
    assert "--temperature must be 0 or more, got -1.0" in refused(
        capsys, "generate", trained, "--temperature", -1, "--device", "cpu"
    )
    assert "unknown device" in refused(capsys, "generate", trained, "--device", "abacus")


def test_a_folder_serves_one_run_at_a_time(text, tmp_path, capsys):
    out = tmp_path / "busy"
    (out / "run").mkdir(parents=True)
    with (out / "run" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["train", str(text), "--out", str(out), *SETTINGS]) == 2
    assert "another command trains in" in capsys.readouterr().err
    assert not (out / "run" / "settings.json").exists()


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    said = capsys.readouterr().out
    for option in ("--out", "--size", "--batch", "--parallel", "--bf16", "--held-out", "--resume"):
        assert (option in said) == (option != "--resume")
    with pytest.raises(SystemExit, match="2"):
        main(["train"])


LIGHT = """
import sys
from companion.command import main
try:
    main(["train", "--help"])
finally:
    print(sorted({"torch", "numpy", "tokenizers", "sympy"} & set(sys.modules)))
"""


def test_help_answers_without_what_is_heavy():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("\n[]\n"), done.stderr


def test_a_real_console_and_a_real_pipe(trained, tmp_path):
    """What no test within this process can see: how Python itself ends."""
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "companion", "generate", str(trained), "--device", "cpu"]
    words += ["--prompt", "中 be"]
    done = subprocess.run(words, capture_output=True, env=env, cwd=ROOT)
    assert done.returncode == 0
    assert done.stderr == b""
    assert done.stdout.startswith(b"? be")
    # The reader leaves before a word is written.
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as left:
        left.stdout.close()
        said = left.stderr.read()
    assert (left.returncode, said) == (141, b"")
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in done.stderr
