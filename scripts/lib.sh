# shellcheck shell=bash
# Functions that scripts/run and scripts/test share. Sourced, never run.

CHECKOUT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
CORE_USER=ca-server-core
FRONT_USER=ca-server-front
SERVICE_GROUP=ca-server
STAMP=.ca-server-stamp

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "$*"
    exit 1
}
is_root() { [ "$(id -u)" -eq 0 ]; }

# as_root COMMAND...: as we are when root, else through sudo, which may ask only where somebody can answer.
as_root() {
    if is_root; then
        "$@"
    elif ! command -v sudo >/dev/null; then
        echo "E: this needs root, and there is no sudo" >&2
        return 1
    elif [ -t 0 ]; then
        sudo -- "$@"
    else
        sudo -n -- "$@"
    fi
}

# --- Debian packages ---------------------------------------------------------------------------------------------

package_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# apt_install PACKAGE...: installs those that are missing; where it can't, says which and why, and fails.
apt_install() {
    local package output missing=()
    for package in "$@"; do package_installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null; then
        say "can't install ${missing[*]}: there is no apt-get here; install what provides them by hand"
        return 1
    fi
    say "installing ${missing[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120)
    # An old package list gives a 404 and a machine without one knows no package: refresh it, then try once more.
    if output=$(as_root "${apt[@]}" install --no-install-recommends "${missing[@]}" 2>&1 </dev/null) ||
        { output=$(as_root "${apt[@]}" update 2>&1 </dev/null) &&
            output=$(as_root "${apt[@]}" install --no-install-recommends "${missing[@]}" 2>&1 </dev/null); }; then
        return 0
    fi
    say "can't install ${missing[*]}: $(grep -E '^(E:|sudo:)' <<<"$output" | tail -n 1)"
    return 1
}

# softhsm_module: prints the path of SoftHSM's PKCS#11 module.
softhsm_module() {
    local path
    for path in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so /usr/lib64/softhsm/libsofthsm2.so \
        /usr/local/lib/softhsm/libsofthsm2.so /usr/lib64/pkcs11/libsofthsm2.so; do
        [ -e "$path" ] && echo "$path" && return 0
    done
    return 1
}

# postgresql_server: prints the path of PostgreSQL's server program.
postgresql_server() {
    local path
    command -v postgres && return 0
    for path in /usr/lib/postgresql/*/bin/postgres; do
        [ -x "$path" ] && echo "$path" && return 0
    done
    return 1
}

# --- Users -------------------------------------------------------------------------------------------------------

# service_users: as root, creates the users that core and fronts run as, both in one group.
service_users() {
    local user
    if ! getent group "$SERVICE_GROUP" >/dev/null; then
        groupadd --system "$SERVICE_GROUP" || return 1
        say "created the system group $SERVICE_GROUP"
    fi
    for user in "$CORE_USER" "$FRONT_USER"; do
        getent passwd "$user" >/dev/null && continue
        useradd --system --gid "$SERVICE_GROUP" --no-create-home --home-dir /nonexistent \
            --shell /usr/sbin/nologin --comment "ca-server" "$user" || return 1
        say "created the system user $user"
    done
}

# as_user USER COMMAND...: as root, with that user's rights and nothing else.
as_user() {
    local user=$1
    shift
    setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups -- "$@"
}

# others_can OPERATOR PATH: as root, what `test OPERATOR PATH` (-r, -x) says for the front's user.
others_can() {
    local user=$FRONT_USER
    getent passwd "$user" >/dev/null || user=nobody
    as_user "$user" test "$1" "$2" 2>/dev/null
}

# --- Python ------------------------------------------------------------------------------------------------------

python_is_new_enough() { "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; }
python_makes_venvs() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# choose_python: prints an interpreter of version 3.11 or newer that can make virtual environments, installing
# Debian's where there is none. As root only one will do that the unprivileged users can execute too: not one below
# /root.
choose_python() {
    local candidate path
    local candidates=(python3 python3.11 python3.12 python3.13 python3.14 /usr/bin/python3)
    is_root && candidates=(/usr/bin/python3 /usr/local/bin/python3 "${candidates[@]}")
    for candidate in "${candidates[@]}"; do
        path=$(command -v "$candidate") || continue
        python_is_new_enough "$path" || continue
        path=$("$path" -c 'import os, sys; print(os.path.realpath(sys.executable))')
        if is_root && ! others_can -x "$path"; then continue; fi
        python_makes_venvs "$path" && echo "$path" && return 0
    done
    apt_install python3 python3-venv || return 1
    if ! python_is_new_enough /usr/bin/python3; then
        say "Python 3.11 or newer is needed; this system's is $(/usr/bin/python3 --version 2>&1)"
        return 1
    fi
    if ! python_makes_venvs /usr/bin/python3; then
        say "/usr/bin/python3 can't make virtual environments although python3-venv is installed"
        return 1
    fi
    readlink -f /usr/bin/python3
}

# tree_hash: one hash over all that an installed copy of the project is made of.
tree_hash() {
    (cd -- "$CHECKOUT" && find ca_server protocols hsm config softhsm README.md -type f ! -name '*.pyc' -print0 2>/dev/null |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-64)
}

# venv_stamp PYTHON MODE: what a virtual environment must have been made from to be used again.
venv_stamp() {
    printf '%s|%s|%s|%s|' "$1" "$2" "$CHECKOUT" \
        "$(cat -- "$CHECKOUT/pyproject.toml" "$CHECKOUT/constraints.txt" "$CHECKOUT/scripts/lib.sh" | sha256sum | cut -c1-64)"
    if [ "$2" = copy ]; then tree_hash; else echo editable; fi
}

pip_install() {
    local venv=$1 output
    shift
    # From /, since `python -m` would import what lies in the caller's folder.
    if ! output=$(cd / && "$venv/bin/python" -m pip install -q --no-input --disable-pip-version-check --prefer-binary \
        --no-build-isolation --constraint "$CHECKOUT/constraints.txt" "$@" 2>&1 </dev/null); then
        printf '%s\n' "$output" >&2
        say "pip can't install into $venv: $({ grep -E '^ *([A-Za-z]*Error|ERROR): ' || echo 'see above'; } <<<"$output" | head -n 1)"
        return 1
    fi
}

# venv_is_current PYTHON DIRECTORY MODE EXTRA: whether its stamp says that nothing changed since it was made.
venv_is_current() {
    local stamp='' extra=''
    [ -r "$2/$STAMP" ] && "$2/bin/python" -c '' 2>/dev/null || return 1
    { read -r stamp && read -r extra; } <"$2/$STAMP"
    [ "$stamp" = "$(venv_stamp "$1" "$3")" ] && { [ -z "$4" ] || [ "$extra" = "$4" ]; }
}

# make_venv PYTHON DIRECTORY MODE EXTRA: makes the virtual environment, or leaves it as it is where it is current.
# MODE is `editable` (the checkout is what runs) or `copy` (a copy of it is installed). EXTRA is `test` or empty; an
# environment that has the tests' packages serves without them too.
make_venv() {
    local python=$1 venv=$2 mode=$3 extra=$4 have_stamp='' have_extra=''
    venv_is_current "$@" && return 0
    if [ -r "$venv/$STAMP" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        { read -r have_stamp && read -r have_extra; } <"$venv/$STAMP"
    fi
    [ -n "$extra" ] || extra=$have_extra

    say "installing the project in $venv"
    rm -f -- "$venv/$STAMP"
    if [ "${have_stamp%%|*}" != "$python" ]; then
        if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
            say "$venv is there and is no virtual environment: move it away"
            return 1
        fi
        "$python" -m venv --clear "$venv" || return 1
    fi
    local project=$CHECKOUT${extra:+[$extra]}
    pip_install "$venv" hatchling editables || return 1
    if [ "$mode" = editable ]; then
        pip_install "$venv" --editable "$project" || return 1
    else
        pip_install "$venv" --force-reinstall --no-deps "$CHECKOUT" || return 1
        pip_install "$venv" "$project" || return 1
    fi
    printf '%s\n%s\n' "$(venv_stamp "$python" "$mode")" "$extra" >"$venv/$STAMP"
}

# locked COMMAND...: one at a time on this checkout, so that two starts at once don't install into each other.
locked() {
    (
        flock 9 || exit 1
        "$@" 9<&-
    ) 9<"$CHECKOUT/scripts/lib.sh"
}
