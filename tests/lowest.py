"""Print the lowest versions that setup.cfg allows, as requirements for pip.

    python tests/lowest.py jax experiments >lowest.txt

``keras>=3.8`` becomes ``keras==3.8``; extras in brackets stay. What only tests is left
to pip.
"""

import configparser
import pathlib
import sys

CONFIG = pathlib.Path(__file__).parent.parent / "setup.cfg"


def lowest(extras: list[str]) -> list[str]:
    """Requirements of the package and of some of its extras, each at its lowest."""
    config = configparser.ConfigParser()
    config.read(CONFIG, encoding="utf-8")
    names = [config["options"]["install_requires"]]
    names += [config["options.extras_require"][extra] for extra in extras]
    lines = "\n".join(names).split("\n")
    return [line.replace(">=", "==") for line in lines if line.strip()]


if __name__ == "__main__":
    print("\n".join(lowest(sys.argv[1:])))
