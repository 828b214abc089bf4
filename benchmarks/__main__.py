"""`python -m benchmarks NAME [OPTIONS]` runs benchmarks/NAME.py; without a name it lists them."""

import importlib
import pkgutil
import sys

import benchmarks


def main() -> None:
    names = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        raise SystemExit(f"python -m benchmarks NAME [OPTIONS]: NAME is one of {', '.join(names)}")
    name = sys.argv.pop(1)
    sys.argv[0] = f"python -m benchmarks {name}"
    importlib.import_module(f"benchmarks.{name}").main()


main()
