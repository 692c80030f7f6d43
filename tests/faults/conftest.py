"""Where modules that fault tests share are found."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the fork server's children look for them by name
