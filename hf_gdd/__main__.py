"""Run the command line as `python -m hf_gdd`."""

from hf_gdd.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
