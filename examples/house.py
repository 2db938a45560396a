"""What stands behind the paywall of an example: everything, made from the settings."""

import os

from farebox.bootstrap import Farebox
from farebox.settings import find_settings, load_settings, read_root_key


def open_farebox() -> Farebox:
    """Read the settings as `farebox serve` does. The app's start opens it, its stop closes it."""
    settings = load_settings(find_settings(None, os.environ), os.environ, {})
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Farebox(settings, read_root_key(settings.data_dir, os.environ))
