"""Build a network from a config. A config that does not describe a network gets an error of one line."""

from __future__ import annotations

from typing import Any

from detectron2.modeling import build_model
from torch import nn

from pffnet_d2.device import denormals_flushed
from pffnet_d2.errors import InputError

# Keys of MODEL.PFFNET, each an attribute of the network or of its ROI heads in small letters. They change predictions
# but no weights, so that a network without them could be built and trained, and nobody would notice.
READ_IN_PREDICTION = ("SEMANTIC_POWER", "BOX_REFINEMENTS")


def build_network(cfg: Any) -> nn.Module:
    """Call Detectron2's ``build_model`` on the device of MODEL.DEVICE.

    Raises:
        InputError: each value is valid by itself (``config.values``), but together they do not describe a network, or
            the network would ignore one of ``READ_IN_PREDICTION``.
    """
    try:
        with denormals_flushed(cfg.MODEL.DEVICE):
            network: nn.Module = build_model(cfg)
    except InputError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        said = str(error.args[0] if error.args else "").strip().partition("\n")[0]
        raise InputError(
            f"the keys below MODEL describe no network ({type(error).__name__}{': ' if said else ''}{said}); compare "
            f"them with a config that comes with the package and has MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE}"
        ) from error
    for key in READ_IN_PREDICTION:
        readers = (network, getattr(network, "roi_heads", None))
        value = cfg.MODEL.PFFNET[key]
        if value and not any(hasattr(reader, key.lower()) for reader in readers):
            raise InputError(
                f"MODEL.PFFNET.{key} {value}: MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} with "
                f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} does not read it; set it to {type(value)(0)}"
            )
    return network
