"""Whose fault a failed run is, by its exit status and the end of its log: the program's, or its surroundings'.

A full disk or a lost network says nothing of a change, so such a run is interrupted and not crashed. The last exception
decides, never a word somewhere in the log: a program may warn of a full disk and die of its own mistake.
"""

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loopgraph_mcp.runner.lookalikes import quoted
from loopgraph_mcp.runner.trainlog import lines_of, shows_progress
from loopgraph_mcp.text import compile_later

_LAST_LINES = 10  # of a program that raises no Python exception
_LINES_AFTER = 40  # that launchers and atexit handlers print after the exception
_MESSAGE_LINES = 8  # an exception's message may span lines
_MAX_PATHS = 8  # paths of one message that are looked for on disk
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # what shells exit with

# Each prints its rank or process before every line; the lines of several may alternate.
_RANK = compile_later(r"\[(?:rank|default)?([0-9]{1,5})\]:? ?|\((?:[\w.:]{1,80} )?pid=([0-9]{1,10})[^)\n]{0,80}\) ?")
_GROUP_BAR = compile_later(r" {0,40}(?:\| ?|\+-[-+0-9 ]*$)")  # the prefix of lines of an ExceptionGroup
_TRACEBACK = "Traceback (most recent call last):"
_RAISED = compile_later(r"([A-Za-z_][\w.]{0,200})(?:: ?(.*))?$")
_FRAME = compile_later(r'\s+File "([^"\n]{1,500})", line [0-9]+')
_NODE_RAISED = compile_later(r"(?:Uncaught )?((?:[A-Z]\w{0,60})?Error)(?: \[([A-Z_]{1,60})\])?: (.*)$")
_NODE_FRAME = compile_later(r"\s+at \S")
_HANDLED = compile_later(r"Exception ignored |--- Logging error ---|Error in atexit")
_THREAD = compile_later(r"Exception in thread ")

# Errors that a program makes by itself, whatever their message says.
_OWN_ERRORS = compile_later(
    r"Arithmetic|Assertion|Attribute|FloatingPoint|Indentation|Index|Key|Lookup|Name|NotImplemented|Overflow|Recursion"
    r"|Reference|Syntax|Tab|Type|UnboundLocal|Unicode(?:Decode|Encode)?|Value|ZeroDivision|Range|Eval"
)
# A launcher says that what it started failed; why is in the traceback of that.
_WRAPPERS = frozenset(
    {"ChildFailedError", "CalledProcessError", "BrokenProcessPool", "TerminatedWorkerError", "ProcessExitedException"}
)


@dataclass(frozen=True, slots=True)
class _Rule:
    what: str
    fix: str
    signs: re.Pattern[str]


def _rule(what: str, fix: str, signs: str) -> _Rule:
    return _Rule(what, fix, compile_later(signs, re.IGNORECASE))  # Go and Rust say the same in small letters


_NETWORK = _rule(
    "the network failed",
    "check the connection, or download the data before the run",
    r"Name or service not known|name resolution|nodename nor servname|getaddrinfo|NameResolutionError|dns error"
    r"|could not resolve|unable to resolve|no such host|no address associated|UnknownHostException"
    r"|\b(?:ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH)\b"
    r"|connection (?:refused|reset|aborted|timed out|broken|error)|connection to \S{1,200} (?:timed out|failed)"
    r"|Network is (?:unreachable|down)|no route to host|Max retries exceeded|NewConnectionError"
    r"|remote end closed connection|server disconnected|cannot connect to (?:host|proxy)|unable to connect"
    r"|failed to (?:establish a new connection|connect)|couldn't connect|couldn't reach|can't reach"
    r"|CERTIFICATE_VERIFY_FAILED|\[SSL[:\]]|SSLError|TLS handshake|handshake (?:operation )?(?:failed|timed out)"
    r"|EOF occurred in violation of protocol|IncompleteRead|the (?:read|write) operation timed out|i/o timeout"
    r"|Read timed out|ProxyError|fetch failed|error sending request"
    r"|cannot find the requested files in the (?:local|disk)"
    r"|Connection error, and we cannot find|Internet connection is on|outgoing traffic has been disabled",
)
_LIBRARY = _rule(
    "a shared library is missing or incompatible",
    "install it, or reinstall its package",
    r"cannot open shared object file|error while loading shared libraries|version `\w+[\w.]*' not found"
    r"|DLL load failed|\.so[\w.]*: undefined symbol|Library not loaded|cannot find -l\w",
)
_RULES = (
    _rule(
        "the disk is full",
        "free some space",
        r"No space left on device|\bENOSPC\b|StorageFull|not enough space on the disk|database or disk is full"
        r"|PytorchStreamWriter failed writing|inline_container\.cc.{0,60}unexpected pos|os error 28\)",
    ),
    _rule("the disk quota is used up", "free some space", r"Disk quota exceeded|\bEDQUOT\b|os error 122\)"),
    _rule(
        "the file system is read-only",
        "make it writable, or write somewhere else",
        r"Read-only file system|\bEROFS\b|os error 30\)|attempt to write a readonly database",
    ),
    _rule(
        "reading or writing the disk failed",
        "check the disk or the mount",
        r"Input/output error|\bEIO\b|disk I/O error|os error 5\)|Stale (?:NFS )?file handle|\bESTALE\b"
        r"|Transport endpoint is not connected|Remote I/O error|Structure needs cleaning",
    ),
    _rule("a port is in use", "end the process that uses it", r"address already in use|\bEADDRINUSE\b"),
    _rule(
        "a server refused the request temporarily",
        "wait, or download the data before the run",
        r"HTTP(?:/[0-9.]{1,3}|Error)?(?: error)?[: ]{1,2}(?:status )?'?(?:429|5[0-9]{2})\b"
        r"|(?<![\w.])(?:429|5[0-9]{2}) (?:Client|Server) error|error '(?:429|5[0-9]{2}) |error: (?:429|5[0-9]{2})\b"
        r"|ERROR 5[0-9]{2}: |(?:status|error)[ _]code[:= ]{1,2}(?:429|5[0-9]{2})\b"
        r"|Too Many Requests|Service Unavailable|Bad Gateway|Gateway Time-?out",
    ),
    _NETWORK,
    _LIBRARY,
    _rule(
        "the GPU or its driver cannot be used",
        "check `nvidia-smi`, `devices_per_run`, and that nothing else holds the device",
        r"Found no NVIDIA driver|No CUDA GPUs are available|CUDA driver version is insufficient|CUDA-capable device"
        r"|CUDA unknown error|cudaGetDeviceCount|Torch not compiled with CUDA|invalid device ordinal"
        r"|no kernel image is available|system not (?:yet )?initialized|uncorrectable ECC|GPU is lost"
        r"|fallen off the bus"
        r"|Driver/library version mismatch|Failed to initialize NVML|NVML Shared Library Not Found|CUDA_ERROR_NO_DEVICE"
        r"|CUDA_ERROR_SYSTEM|driver version mismatch|torch\.cuda\.is_available\(\) is False"
        r"|Unable to initialize backend '(?:cuda|gpu|tpu|rocm)'|No HIP GPUs are available"
        r"|device\(?s?\)? (?:is|are) busy"
        r"|NVIDIA-SMI has failed",
    ),
)
_PEERS = compile_later(  # one process of several says that another is gone, which has its own reason
    r"\bgloo\b|NCCL|TCPStore|c10d|ProcessGroup|Dist(?:Backend|Network|Store)Error|[Cc]onnection closed by peer"
)
_NETWORK_TYPES = compile_later(
    r"(?:Connection(?:Error|RefusedError|ResetError|AbortedError|Timeout)|Connect(?:Error|Timeout)|ReadTimeout(?:Error)?"
    r"|WriteTimeout|PoolTimeout|ReadError|RemoteProtocolError|RemoteDisconnected|SSLError|SSLCertVerificationError"
    r"|ProxyError|gaierror|ChunkedEncodingError|NewConnectionError|MaxRetryError|NameResolutionError|ProtocolError"
    r"|EndpointConnectionError|ConnectTimeoutError|ReadTimeoutError|ClientConnector\w*Error|ServerDisconnectedError"
    r"|ClientOSError|ClientPayloadError|APIConnectionError|APITimeoutError|RateLimitError|InternalServerError"
    r"|ServiceUnavailable|TooManyRequests|OfflineModeIsEnabled|LocalEntryNotFoundError|CommError|URLError)"
)
# What libraries are known to raise as an error of the program.
_KNOWN_AS_OWN = compile_later(
    r"Torch not compiled with CUDA|\bfetch failed\b|Internet connection is on|Connection error, and we cannot find"
)
_TIMED_OUT = compile_later(r"timed out$|_ssl\.c:[0-9]+: ")
_NO_MODULE = compile_later(r"No module named '?([\w.]{1,200})'?")
_NO_PACKAGE = compile_later(
    r"Cannot find (?:module|package) '([^'\n]{1,300})'|there is no package called .([\w.]{1,100})."
    r"|Package (\w{1,100}) not found"
    r"|no required module provides package ([\w./-]{1,200})|No matching distribution found for (\S{1,200})"
    r"|No package metadata was found for (\S{1,200})|The '([\w.-]{1,100})\S*' distribution was not found"
)
_NOT_INSTALLED = compile_later(
    r"pip3? install|conda install|not installed|Missing optional dependency|not found in your environment"
)
_CANNOT_START = compile_later(
    r"command not found|^\S{1,100}: (?:line )?[0-9]{1,6}: \S{1,200}: not found$|^\S{0,100}sh: \S{1,200}: not found$"
    r"|can't open file .{1,300}No such file or directory|Failed to spawn|^(?:\S{0,100}/)?env: .{1,200}: No such file"
    r"|\bexec\w*: .{1,200}(?:not found|No such file|permission denied|format error)|bad interpreter|cannot execute",
    re.IGNORECASE,
)
_NO_FILE = compile_later(
    r"no such file or directory|\bENOENT\b|does(?:n't| not) exist|not found|can(?:no|')t (?:find|open)|couldn't find"
    r"|unable to open|os error 2\)",
    re.IGNORECASE,
)
_QUOTED_PATH = compile_later(r"""['"`\u2018\u201c<]([^'"`\u2019\u201d<>\n]{1,500})['"`\u2019\u201d>]""")
_BARE_PATH = compile_later(r"(?<![\w/.'\"-])((?:\.{0,2}/)?[\w.@+-]{1,200}(?:/[\w.@+-]{1,200}){0,30})(?![\w/])")
_WARNING = compile_later(r"\bwarn", re.IGNORECASE)
_WRAPPING_LINE = compile_later(
    r"make(?:\[[0-9]+\])?: \*\*\*|npm (?:ERR!|error)(?! code| network| errno| request)|Node\.js v|wandb: |\s+at "
    r"|goroutine |note: |\s*[=-]{3,}\s*$"
    r"|\[[WI][0-9 ]|(?:[WIE][0-9]{4}|\[?ERROR\]?) .*(?:elastic|torch/distributed)"
    r"|ERROR:torch\.distributed|srun: "
)
_LATER_ERROR = compile_later(r"\W{0,3}(?:ERROR|FATAL|CRITICAL|[Ee]rror|[Ff]atal)\b[: ]")
_ERROR_LINE = compile_later(
    r"error|fatal|panic|exception|fail|abort|segmentation fault|core dumped|assert|cannot|can't|unable|invalid"
    r"|mismatch",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Raised:
    """One exception as its traceback ends: its type's last name, its message's first lines, its innermost file."""

    type: str
    message: str
    file: str
    line: int
    in_thread: bool = False

    @property
    def first_line(self) -> str:
        first = self.message.split("\n", 1)[0]
        return f"{self.type}: {first}" if first else self.type


def fault_of_surroundings(
    exit_code: int,
    tail: str,
    *,
    absent: Callable[[str], str | None],
    is_own_module: Callable[[str], bool],
) -> str:
    """Return what failed around a program and what to do first, or nothing where the program is at fault.

    Args:
        exit_code: Its exit status, negative for a signal.
        tail: The end of its log.
        absent: Returns how to name a path that the user's folder has and the run's copy lacks; None for any other.
        is_own_module: Whether a top-level module belongs to the workspace.
    """
    if exit_code in {-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}:
        return f"another process on this machine ended it ({signal.Signals(-exit_code).name}); run it again"
    lines = [line for line in lines_of(tail) if line.strip()]
    fault = _judge_exceptions(lines, absent, is_own_module)
    if fault is None and (exit_code > 0 or exit_code == -signal.SIGABRT):
        fault = _judge_lines(lines, absent)
    if not fault and exit_code in {_NOT_EXECUTABLE, _NOT_FOUND}:
        last = f" ({quoted(lines[-1])})" if lines else ""
        fault = f"the command could not be started{last}; check `command` in loopgraph.toml and what it needs"
    return f"{fault}, then run it again" if fault else ""


def _judge_exceptions(
    lines: Sequence[str], absent: Callable[[str], str | None], is_own_module: Callable[[str], bool]
) -> str | None:
    """Return the fault that the last exceptions show; empty where it is the program's; None if there are none."""
    ends = [last for stream in _streams(lines) if (last := _last_raised(stream)) is not None]
    raised_here = [each for each in ends if not (_PEERS.search(each.first_line) and "in use" not in each.first_line)]
    if not raised_here:
        return "" if ends else None
    faults = [_judge(each, absent, is_own_module) for each in raised_here]
    return faults[-1] if all(faults) else ""  # of several ranks, one that failed by itself failed the others


def _streams(lines: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Return the numbered lines of each rank or process, in order."""
    streams: dict[str, list[tuple[int, str]]] = {"": []}
    for number, line in enumerate(lines):
        match = _RANK.match(line)
        key = "" if match is None else f"{match.group(1)} {match.group(2)}"
        text = line if match is None else line[match.end() :]
        if len(streams) < 100 or key in streams:
            streams.setdefault(key, []).append((number, text))
    return [stream for stream in streams.values() if stream]


def _last_raised(stream: Sequence[tuple[int, str]]) -> _Raised | None:
    """Return the exception that ended one process, not what its launcher says of it; None where it went on after it."""
    raised = [each for each in _raised_in(stream) if each.type not in _WRAPPERS]
    main = [each for each in raised if not each.in_thread] or raised
    if not main:
        return None
    last = main[-1]
    after = [text for number, text in stream if number > last.line]
    went_on = any(shows_progress(text) or _later_error(text) for text in after)
    return None if went_on or len(after) > _LINES_AFTER else last


def _later_error(line: str) -> bool:
    return bool(_LATER_ERROR.match(line)) and not _WRAPPING_LINE.match(line)


def _raised_in(stream: Sequence[tuple[int, str]]) -> list[_Raised]:
    """Return the exceptions of a process in the order in which they were printed, chained ones as several."""
    found: list[_Raised] = []
    texts = [text if (bar := _GROUP_BAR.match(text)) is None else text[bar.end() :] for _, text in stream]
    at = 0
    while at < len(texts):
        if _TRACEBACK in texts[at]:
            before = texts[at - 1] if at else ""
            ignored, in_thread = bool(_HANDLED.search(before)), bool(_THREAD.search(before))
            end, file = at + 1, ""
            while end < len(texts) and (texts[end][:1].isspace() or not texts[end]):
                file = frame.group(1) if (frame := _FRAME.match(texts[end])) else file
                end += 1
            match = _RAISED.match(texts[end]) if end < len(texts) else None
            if match and not ignored:
                message = _message(match.group(2) or "", texts[end + 1 : end + _MESSAGE_LINES])
                name = match.group(1).rpartition(".")[2]
                found.append(_Raised(name, message, file, stream[end][0], in_thread))
            at = end
        elif (match := _NODE_RAISED.match(texts[at])) and _is_node(texts, at):
            message = _message(f"{match.group(2) or ''} {match.group(3)}".strip(), texts[at + 1 : at + 30])
            found.append(_Raised(match.group(1), message, "", stream[at][0]))
            at += 1
        else:
            at += 1
    return found


def _is_node(texts: Sequence[str], at: int) -> bool:
    return any(_NODE_FRAME.match(text) for text in texts[at + 1 : at + 6])


def _message(first: str, following: Sequence[str]) -> str:
    rest: list[str] = []
    for text in following:
        if _TRACEBACK in text:
            break
        rest.append(text)
    return "\n".join([first, *rest])


def _judge(raised: _Raised, absent: Callable[[str], str | None], is_own_module: Callable[[str], bool]) -> str:
    """Return the fault of the surroundings that one exception shows, or nothing."""
    if raised.type == "ModuleNotFoundError" or _NO_PACKAGE.search(raised.first_line):
        return _missing_module(raised, absent, is_own_module)
    own = _is_own(raised.type)
    if path := _absent_path(raised.message, absent, bare_words=not own):
        return path
    if raised.type == "ImportError":
        return _broken_import(raised)
    if "multiprocessing/" in raised.file and raised.type in {"ConnectionResetError", "ConnectionRefusedError"}:
        return ""  # a worker of the program's own died
    line = raised.first_line
    if own:
        match = _KNOWN_AS_OWN.search(line)
        line = match.group() if match else ""
    for rule in _RULES:
        if rule.signs.search(line):
            return _say(rule, raised.first_line)
    return _say(_NETWORK, raised.first_line) if _is_network(raised) else ""


def _is_own(error: str) -> bool:
    return bool(_OWN_ERRORS.fullmatch(error.removesuffix("Error")))


def _is_network(raised: _Raised) -> bool:
    if _NETWORK_TYPES.fullmatch(raised.type):
        return not re.search(r"\b40[0-8]\b", raised.first_line)
    timed_out = raised.type in {"TimeoutError", "timeout"}
    return timed_out and bool(_TIMED_OUT.search(raised.message.split("\n", 1)[0]))


def _say(rule: _Rule, line: str) -> str:
    return f"{rule.what} ({quoted(line)}); {rule.fix}"


def _missing_module(raised: _Raised, absent: Callable[[str], str | None], is_own_module: Callable[[str], bool]) -> str:
    """Return the module or package that is not installed, or that the run's copy lacks."""
    first = raised.first_line
    if raised.type == "ModuleNotFoundError":
        match = _NO_MODULE.search(first)
        if match is None or "is not a package" in first:
            return ""
        path = match.group(1).replace(".", "/")
        if found := absent(f"{path}.py") or absent(path):
            return _say_absent(found)
        return "" if is_own_module(path.split("/", 1)[0]) else _say_module(match.group(1))
    match = _NO_PACKAGE.search(first)
    name = next(group for group in match.groups() if group) if match else ""
    if not name.startswith((".", "/", "file:")):
        return _say_module(name)
    paths = (absent(name + ending) for ending in ("", ".js", ".mjs", ".cjs", ".ts", ".json"))
    found = next((path for path in paths if path), None)
    return _say_absent(found) if found else ""


def _broken_import(raised: _Raised) -> str:
    """Return what an import needs and the machine lacks; a name that a module lacks is the program's mistake."""
    if "cannot import name" in raised.first_line:
        return ""
    if _LIBRARY.signs.search(raised.message):
        return _say(_LIBRARY, raised.first_line)
    if _NOT_INSTALLED.search(raised.message):
        return f"a package is not installed ({quoted(' '.join(raised.message.split()))}); install it"
    return ""


def _say_module(name: str) -> str:
    return f"the module `{name}` is not installed; install it, or correct the import"


def _say_absent(path: str) -> str:
    key = "link" if path.startswith("..") else "dataset"
    return f"`{path}` exists in your folder, not in the run's copy; add it to `{key}` in loopgraph.toml"


def _absent_path(text: str, absent: Callable[[str], str | None], *, bare_words: bool) -> str:
    """Return the fault where a text misses a file that the user's folder has and the run's copy lacks.

    Where bare words do not count, a path is known by a slash or a suffix: `KeyError: 'data' not found` names none.
    """
    if not _NO_FILE.search(text):
        return ""
    first = "\n".join(text.split("\n")[:3])
    paths = [*_QUOTED_PATH.findall(first)[:_MAX_PATHS], *_BARE_PATH.findall(first[:1_000])[: 4 * _MAX_PATHS]]
    for path in dict.fromkeys(paths):
        if (bare_words or re.search(r"[/.]", path)) and (found := absent(path)):
            return _say_absent(found)
    return ""


def _judge_lines(lines: Sequence[str], absent: Callable[[str], str | None]) -> str:
    """Return the fault that the last lines of a program without exceptions show; the last about an error decides."""
    spoken = [line for line in lines[-100:] if not _WRAPPING_LINE.match(line) and not _WARNING.search(line)]
    for line in reversed(spoken[-_LAST_LINES:]):
        if (fault := _judge_line(line, absent)) is not None:
            return fault
    return ""


def _judge_line(line: str, absent: Callable[[str], str | None]) -> str | None:
    """Return the fault that one line shows; empty where it is the program's; None where it is about no error."""
    error = _RAISED.match(line)
    if shows_progress(line) or (error and _is_own(error.group(1))):
        return ""  # what was printed before a step of progress was survived
    if path := _absent_path(line, absent, bare_words=True):
        return path
    if match := _NO_MODULE.search(line):
        return _say_module(match.group(1))
    if (match := _NO_PACKAGE.search(line)) and not (match.group(1) or "").startswith((".", "/", "file:")):
        return f"a package is not installed ({quoted(line)}); install it"
    if rule := next((rule for rule in _RULES if rule.signs.search(line)), None):
        return _say(rule, line)
    if _CANNOT_START.search(line):
        return f"a command could not be started ({quoted(line)}); install it, or correct `command`"
    return "" if _ERROR_LINE.search(line) else None
