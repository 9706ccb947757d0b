"""One module a publisher, all with the contract of ``record.Reader``."""

from pffnet_d2.data.readers import bbbc039
from pffnet_d2.data.readers.record import Reader

READERS: dict[str, Reader] = {"bbbc039": bbbc039}
