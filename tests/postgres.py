"""A PostgreSQL server for one test: Debian's, on a socket of its own."""

import contextlib
import getpass
import os
import pathlib
import shutil
import subprocess
import tempfile


def _programs():
    """Where initdb and pg_ctl are: Debian does not put them on the path."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    first = str(found[-1]) if found else shutil.which("initdb")
    assert first, "no PostgreSQL here: apt-get install postgresql"
    return pathlib.Path(first).parent


@contextlib.contextmanager
def server():
    """The URL of an empty database, as SQLAlchemy wants it."""
    path, user, as_user = _programs(), getpass.getuser(), []
    with tempfile.TemporaryDirectory(prefix="postgres") as name:
        if os.geteuid() == 0:
            # The server refuses to run as root.
            user, as_user = "nobody", ["runuser", "-u", "nobody", "--"]
            shutil.chown(name, user)

        def run(program, *arguments):
            command = [*as_user, str(path / program), "-D", f"{name}/data", *arguments]
            # To a file: the server would keep a pipe open.
            with open(f"{name}.out", "w") as out:
                done = subprocess.run(
                    command, stdout=out, stderr=out, cwd="/", check=False
                )
            text = pathlib.Path(f"{name}.out").read_text()
            os.remove(f"{name}.out")
            assert done.returncode == 0, text

        run("initdb", "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
        run("pg_ctl", "-w", "-o", f"-k {name} -c listen_addresses= -F", "start")
        try:
            yield f"postgresql+psycopg://{user}@/postgres?host={name}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
