# shellcheck shell=bash
# What every script of this folder needs before it can do its work: Debian packages and the Python environment in .venv.
# Sourced by bash with `set -euo pipefail`; sets `root` (the checkout) and `bin` (the environment's programs).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
bin=$root/.venv/bin

not_yours="$root/.venv belongs to someone else: have its owner remove it, then run this again."

# Needed to run / needed once, to build pyfuse3 (its package index carries no binaries of it).
run_packages=(python3 python3-venv fuse3)
build_packages=(python3-dev gcc libc6-dev pkg-config libfuse3-dev)

say() {
    printf '%s\n' "$*" >&2
}

# One sentence, and out. The exit code is 1 unless FAIL_CODE says otherwise.
fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit "${FAIL_CODE:-1}"
}

# Runs a long, chatty command quietly into the file LOG, in English; its output matters only when it fails.
quietly() {
    local log=$1
    shift
    LC_ALL=C.UTF-8 "$@" </dev/null >>"$log" 2>&1
}

is_installed() {
    # ${...} below is dpkg's, not the shell's
    # shellcheck disable=SC2016
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# need_packages NAME...: installs those Debian packages that are missing. Uses sudo, if at all, for apt.
need_packages() {
    local missing=() name log
    for name in "$@"; do
        is_installed "$name" || missing+=("$name")
    done
    ((${#missing[@]})) || return 0

    local install="apt-get install ${missing[*]}"
    command -v apt-get >/dev/null || fail "needs ${missing[*]}, and there is no apt-get here to install them with."
    local apt=(apt-get)
    if ((EUID != 0)); then
        command -v sudo >/dev/null || fail "packages are missing and there is no sudo here: as root, run: $install"
        apt=(sudo apt-get) # asks for a password on the terminal itself, whatever stdin is
    fi
    export DEBIAN_FRONTEND=noninteractive

    say "Installing Debian packages: ${missing[*]}"
    log=$(mktemp)
    # A source that has nothing to do with us may be down: only the installation decides.
    quietly "$log" "${apt[@]}" update || true
    if ! quietly "$log" "${apt[@]}" install --yes --no-install-recommends -o DPkg::Lock::Timeout=60 "${missing[@]}"; then
        local why="apt could not install ${missing[*]} (its last words are above)."
        if grep -qE 'Could not get lock|Unable to acquire the dpkg|Unable to lock' "$log"; then
            why="apt is locked by another program that installs packages: wait until that has finished, then run this again."
        elif grep -qE 'Temporary failure resolving|Could not resolve|Could not connect|Network is unreachable|timed out' "$log"; then
            why="no network: apt cannot reach the Debian packages ${missing[*]}."
        elif grep -qE '^sudo: |is not in the sudoers|may not run sudo|not allowed to execute' "$log"; then
            why="you may not use sudo for apt here: as root, run: $install"
        fi
        [[ $why != apt\ could* ]] || tail -n 15 "$log" >&2
        rm -f "$log"
        fail "$why"
    fi
    rm -f "$log"
}

# need_postgresql: its programs. Left to itself the package would also make a database cluster and start it, now and at every boot.
need_postgresql() {
    is_installed postgresql && return
    local setting=/etc/postgresql-common/createcluster.d/backupfs-tests.conf as_root=() code=0
    if ((EUID != 0)); then
        command -v sudo >/dev/null || fail "there is no sudo here: as root, run: apt-get install postgresql"
        as_root=(sudo)
    fi
    "${as_root[@]}" mkdir -p "${setting%/*}"
    "${as_root[@]}" tee "$setting" <<<'create_main_cluster = false' >/dev/null
    (need_packages postgresql) || code=$?
    "${as_root[@]}" rm -f "$setting"
    return "$code"
}

# pip_install LOCK OPTIONS...: exactly what the lock file names, each file checked against its hash, binaries where there are any.
pip_install() {
    local lock=$root/scripts/locks/$1.lock
    shift
    run_pip install --require-hashes --no-deps --only-binary :all: "$@" --requirement "$lock"
}

run_pip() {
    local log=$root/.venv/install.log
    # Settings of the person's own shell must not lead pip elsewhere; where packages come from is theirs to say.
    if ! quietly "$log" env -u PIP_USER -u PIP_TARGET -u PIP_PREFIX -u PYTHONPATH -u PYTHONHOME \
        "$bin/python" -m pip --disable-pip-version-check --no-input --retries 2 "$@"; then
        if grep -q 'DO NOT MATCH THE HASHES' "$log"; then
            fail "a downloaded package is not the one in scripts/locks: someone changed it on the way, or the lock is wrong."
        elif grep -qE 'NewConnectionError|NameResolutionError|Temporary failure|ConnectTimeout|Network is unreachable' "$log"; then
            fail "no network: the Python package index cannot be reached."
        elif grep -q 'No space left on device' "$log"; then
            fail "no space left on the disk that holds $root/.venv."
        fi
        tail -n 15 "$log" >&2
        fail "pip could not install what is needed (its last words are above, all of them in $log)."
    fi
}

# stage NAME FINGERPRINT COMMAND...: does a part of the installation unless it was done with the same inputs. A part that
# was begun and not finished leaves .venv/unfinished behind, and the environment is made anew.
stage() {
    local done_file=$root/.venv/done-$1 fingerprint=$2
    shift 2
    [[ ! -f $done_file || $(<"$done_file") != "$fingerprint" ]] || return 0
    { : >"$root/.venv/unfinished"; } 2>/dev/null || fail "$not_yours"
    "$@"
    printf '%s\n' "$fingerprint" >"$done_file"
    rm -f "$root/.venv/unfinished"
}

fingerprint_of() {
    (cd "$root" && sha256sum "$@" | sha256sum | cut -d ' ' -f 1)
}

# An empty environment, always of the system's Python: one below somebody's home may not be readable by others.
make_venv() {
    say "Making the Python environment in $root/.venv (a minute or so)"
    rm -rf "$root/.venv" 2>/dev/null || fail "$not_yours"
    mkdir "$root/.venv" 2>/dev/null || fail "$root cannot be written to: use a copy of this folder that belongs to you."
    : >"$root/.venv/unfinished"
    quietly "$root/.venv/install.log" /usr/bin/python3 -m venv "$root/.venv" ||
        fail "/usr/bin/python3 could not make an environment: see $root/.venv/install.log"
}

install_runtime() {
    pip_install build
    pip_install run --no-build-isolation --no-binary pyfuse3
    "$bin/python" -c 'import blake3, cryptography, lmdb, msgspec, pyfuse3, trio, zstandard' ||
        fail "the installed packages do not load on this machine."
    "$bin/python" -c 'import pyfastcdc.cy' 2>/dev/null ||
        fail "pyfastcdc has no compiled build for this machine, and its Python build is too slow to be of use."
}

install_project() {
    run_pip install --no-deps --no-build-isolation --editable "$root"
}

install_group() {
    say "Installing what the $1 scripts need"
    pip_install "$1"
}

# need_environment [GROUP...]: .venv holds backupfs, what it runs on, and the packages of the named lock files.
need_environment() {
    local packages=("${run_packages[@]}")
    [[ -f $root/.venv/done-runtime ]] || packages+=("${build_packages[@]}")
    need_packages "${packages[@]}"
    /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "needs Python 3.11 or newer, and /usr/bin/python3 is $(/usr/bin/python3 --version)."
    (
        umask 022
        # Two scripts at once: one installs, the other waits. Whoever may not write here has nothing to install either.
        { exec 9>>"$root/.venv.lock"; } 2>/dev/null && flock 9
        local runtime group
        runtime="$root $(/usr/bin/python3 --version) $(fingerprint_of scripts/locks/build.lock scripts/locks/run.lock)"
        if [[ -e $root/.venv/unfinished || ! -x $bin/python || $(cat "$root/.venv/done-runtime" 2>/dev/null) != "$runtime" ]]; then
            need_packages "${build_packages[@]}"
            make_venv
        fi
        stage runtime "$runtime" install_runtime
        stage project "$(fingerprint_of pyproject.toml backupfs/__init__.py)" install_project
        for group in "$@"; do
            stage "$group" "$(fingerprint_of "scripts/locks/$group.lock")" install_group "$group"
        done
    )
}
