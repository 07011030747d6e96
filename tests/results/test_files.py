"""Files of results: read whole while other machines replace them."""

import errno
from pathlib import Path

import pytest

from robustbench_inv.results import files


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ENOENT])
def test_a_file_that_another_machine_replaces_is_read_again(tmp_path, monkeypatch, code):
    path, real, failures = tmp_path / "cell.json", Path.read_bytes, [OSError(code, "replaced")] * 2
    path.write_bytes(b"new")
    monkeypatch.setattr(files.time, "sleep", lambda _: None)

    def stale(self):
        if failures:
            raise failures.pop()
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", stale)
    assert files.read_whole(path) == b"new"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        files.read_whole(path)
