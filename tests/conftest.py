import sys
from pathlib import Path

# The helper modules of the tests are imported by name whichever folder pytest starts from.
sys.path.insert(0, str(Path(__file__).parent))
