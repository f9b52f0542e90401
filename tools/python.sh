#!/bin/sh
# Run a tool with the first suitable Python found: sh tools/python.sh tools/environment.py
# PYTHON=/path/to/python in the environment chooses one instead.
oldest=3.11 newest=3.13
found=""
for python in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
  case $version in
    3.11 | 3.12 | 3.13) exec "$python" "$@" ;;
  esac
  found="$found $python is $version;"
done
{
  echo "This book needs Python $oldest to $newest."
  echo "Found:${found:- none that runs}${PYTHON:+ (PYTHON=$PYTHON was asked for)}"
  echo "Install one of them, or name one:  make book PYTHON=/path/to/python$newest"
} >&2
exit 1
