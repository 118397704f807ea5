"""``python -m keras_scaled_l2``, the same as the command ``keras-scaled-l2``."""

import sys

from keras_scaled_l2.cli import main

if __name__ == "__main__":
    sys.exit(main())
