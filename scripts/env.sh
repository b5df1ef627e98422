# Sourced by the other scripts: finds Python, makes .venv once, installs what is pinned in constraints.txt.
# Usage: prepare_venv EXTRAS    (after it, "$venv/bin/python" has the package, editable, with these extras)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${LOOPGRAPH_VENV:-$root/.venv}

die() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "needs Python 3.11 or newer; install it, or name it: PYTHON=/path/to/python $0"
}

prepare_venv() {
    case $(uname -s) in
        Linux | Darwin) ;;
        *) die "LoopGraph runs on Linux and macOS; on Windows use WSL" ;;
    esac
    local pinned stamp installed=
    pinned="$(cksum <"$root/constraints.txt") $(cksum <"$root/pyproject.toml")"
    stamp=$venv/.loopgraph-installed
    if [ -f "$stamp" ] && [ "$(tail -n +2 "$stamp")" = "$pinned" ]; then
        installed=$(head -n 1 "$stamp")
        case ,$installed, in *,$1,*) return ;; esac
    fi
    if [ ! -x "$venv/bin/python" ]; then
        echo "making $venv"
        "$(find_python)" -m venv "$venv" || die "could not make $venv (on Debian: apt install python3-venv)"
    fi
    echo "installing what constraints.txt pins (torch is large: a few minutes the first time)"
    # The build's own tools first, then without isolation: so these are pinned as well.
    local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt")
    "${pip[@]}" hatchling editables && "${pip[@]}" --no-build-isolation --editable "$root[$1]" ||
        die "the installation failed; see above"
    printf '%s\n%s\n' "$1" "$pinned" >"$stamp"
}
