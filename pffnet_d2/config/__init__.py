"""The keys of a config, the values that each accepts, and reading configs from yaml files."""

from pffnet_d2.config.keys import add_pffnet_config
from pffnet_d2.config.read import PARTS, config_path, differences, is_config, override, read_config

__all__ = ["PARTS", "add_pffnet_config", "config_path", "differences", "is_config", "override", "read_config"]
