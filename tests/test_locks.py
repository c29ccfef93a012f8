"""One process at a time holds a file or folder."""

import pytest

from lengthen.errors import OutputError
from lengthen.locks import is_locked, locked


def test_locks(tmp_path):
    assert not is_locked(tmp_path)
    with locked(tmp_path, "the place is being written"):
        assert is_locked(tmp_path)
        with pytest.raises(OutputError, match="the place is being written by another process; wait until it ends"):
            locked(tmp_path, "the place is being written").__enter__()
    assert not is_locked(tmp_path)
