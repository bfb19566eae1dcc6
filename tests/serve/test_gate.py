"""What stands before the service; the rest of it is tried over the wire in `test_serve`."""

import subprocess
import sys

import pytest

from tinycifar.serve import gate


def test_another_address_needs_names() -> None:
    command = [sys.executable, "-m", "tinycifar", "serve", "minute", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "tinycifar: --host 0.0.0.0 lets other machines in: say by which names they ask, with --allow-host NAME\n"
    )


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "", "a b"])
def test_a_name_to_be_asked_by_has_no_scheme_and_no_port(name: str) -> None:
    with pytest.raises(ValueError, match="takes a name or an address without scheme and port"):
        gate.check_hosts("0.0.0.0", [name])
