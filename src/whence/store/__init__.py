"""Files: what is written is either whole or not there, and can be recognised again."""

from whence.store.files import write_atomically
from whence.store.fingerprints import fingerprint
from whence.store.runs import Draft, Run, writing

__all__ = ["Draft", "Run", "fingerprint", "write_atomically", "writing"]
