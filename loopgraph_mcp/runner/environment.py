"""Which environment variables a subprocess gets: an allow-list, so that a key that nobody thought of stays here.

A run executes code that an agent or a stranger wrote, and its log is shown to everyone who may read. Nothing passes
because it looks harmless: a variable passes because it is on a list below or because `pass_env` names it.
"""

import os
import re
from collections.abc import Collection, Mapping

# How a process finds its programs, its user's folders, its language and its clock.
_SYSTEM = frozenset({
    "COLORTERM", "HOME", "LANG", "LANGUAGE", "LOGNAME", "NO_COLOR", "PATH", "SHELL", "TEMP", "TERM", "TMP", "TMPDIR",
    "TZ", "TZDIR", "USER",
})  # fmt: skip
# What decides how Python, compilers and libraries behave, and where they keep their caches.
_TRAINING = frozenset({
    "CC", "CPATH", "CXX", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "MAX_JOBS",
    "CONDA_DEFAULT_ENV", "CONDA_PREFIX", "CONDA_SHLVL", "VIRTUAL_ENV",
    "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE",
    "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
    "HF_XET_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "MALLOC_ARENA_MAX", "MALLOC_CONF",
    "LOOPGRAPH_CACHE", "LOOPGRAPH_MAX_STEPS", "LOOPGRAPH_PROFILE",
    "MPLBACKEND", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMEXPR_MAX_THREADS", "NUMEXPR_NUM_THREADS",
    "PYTHONDONTWRITEBYTECODE", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONMALLOC",
    "PYTHONNOUSERSITE", "PYTHONPYCACHEPREFIX", "PYTHONUSERBASE", "PYTHONUTF8", "PYTHONWARNINGS",
    "SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK", "SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_JOB_ID",
    "SLURM_LOCALID", "SLURM_MEM_PER_NODE", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_TMPDIR",
    "TOKENIZERS_PARALLELISM", "VECLIB_MAXIMUM_THREADS",
    "UV_CACHE_DIR", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_LINK_MODE", "UV_OFFLINE", "UV_PYTHON",
    "UV_PYTHON_INSTALL_DIR", "UV_TOOL_DIR", "PIP_CACHE_DIR", "PIP_INDEX_URL",
    "WANDB_CACHE_DIR", "WANDB_DIR", "WANDB_DISABLED", "WANDB_MODE", "WANDB_SILENT",
})  # fmt: skip
_FAMILIES = (
    "LC_", "XDG_", "DYLD_",
    "BLIS_", "CUBLAS", "CUDA", "CUDNN", "GLOO_", "GOMP_", "GPU_", "HIP", "HSA_", "JAX_", "KMP_", "MIOPEN_", "MKL_",
    "NCCL_", "NVIDIA_", "OMP_", "OPENBLAS_", "PYTORCH_", "RCCL_", "ROCBLAS_", "ROCM_", "ROCR_", "TF_", "TORCH",
    "TPU_", "TRITON_", "UCX_", "XLA_",
)  # fmt: skip
_PROXIES = frozenset({"all_proxy", "ftp_proxy", "http_proxy", "https_proxy", "no_proxy"})
# What the supervisor reads itself. PYTHONPATH is how it finds this package where that is not installed, and coverage
# measures it in the tests; the training gets neither.
_SUPERVISOR = frozenset({
    "COVERAGE_FILE", "COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START",
    "LOOPGRAPH_DAY_ONE", "LOOPGRAPH_DEVICE", "LOOPGRAPH_LOG_FORMAT", "LOOPGRAPH_LOG_LEVEL", "LOOPGRAPH_PACKS",
})  # fmt: skip
_GIT = frozenset({
    "GIT_AUTHOR_DATE", "GIT_AUTHOR_EMAIL", "GIT_AUTHOR_NAME", "GIT_CEILING_DIRECTORIES", "GIT_COMMITTER_DATE",
    "GIT_COMMITTER_EMAIL", "GIT_COMMITTER_NAME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_SYSTEM",
    "GIT_EXEC_PATH",
})  # fmt: skip

_SECRET_NAME = re.compile(
    r"KEY|TOKEN|SECRET|PASSW|PASSPHRASE|(?:^|_)PASS(?:_|$)|_PW(?:D|$)|CRED|COOKIE|AUTH|PRIVATE|SESSION|JWT|BEARER"
    r"|WEBHOOK|SIGNATURE|CONNECTION_?STRING|(?:^|_)DSN(?:_|$)",
    re.IGNORECASE,
)
_NOT_SECRET = frozenset({"TOKENIZERS_PARALLELISM"})
_SECRET_VALUE = re.compile(
    r"://[^/?#\s]{1,1000}@"  # a user, or a user and a password, in a URL
    r"|[?&;][\w.-]{0,40}(?:token|key|secret|passw(?:or)?d|pwd|sig|signature)="
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY"
    r"|\b(?:sk-|gh[oprsu]_|github_pat_|glpat-|hf_|xox[abeprs]-|npm_|pypi-|AKIA|ASIA|AIza|eyJ[\w-]{10,200}\.)[\w-]{8}",
    re.IGNORECASE,
)


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable holds a key, a token or a password, as its name or its value shows."""
    if name in _NOT_SECRET:
        return False
    if name.lower() in _PROXIES and "@" in value:  # a proxy may be written without its scheme: user:pass@host:3128
        return True
    return _SECRET_NAME.search(name) is not None or _SECRET_VALUE.search(value) is not None


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that hold keys, tokens or passwords."""
    return {name: value for name, value in environment.items() if not is_secret(name, value)}


def for_training(
    environment: Mapping[str, str], *, declared: Collection[str] = (), named: Collection[str] = ()
) -> dict[str, str]:
    """Return what a training process gets of an environment.

    Args:
        environment: Ours.
        declared: Variables of `context_env`: passed on unless they hold a secret.
        named: Variables of `pass_env`: passed on whatever they hold.
    """
    wanted = _SYSTEM | _TRAINING | frozenset(declared)
    return _chosen(environment, wanted, families=_FAMILIES) | _of(environment, named)


def for_supervisor(
    environment: Mapping[str, str], *, declared: Collection[str] = (), named: Collection[str] = ()
) -> dict[str, str]:
    """Return what a supervisor gets of an environment: what its training gets, and what it reads itself."""
    kept = for_training(environment, declared=declared, named=named)
    return kept | _chosen(environment, _SUPERVISOR) | python_path(environment)


def for_probe(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a command that is only asked something gets: a driver's tool, an interpreter with fixed code."""
    return _chosen(environment, _SYSTEM | _TRAINING, families=_FAMILIES)


def for_git(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what git gets: who commits and where its settings are; no key, no agent, no repository but the folder's.

    Git runs what its settings name (filters, pagers, helpers), which a checkout can choose among.
    """
    kept = _chosen(environment, _SYSTEM | frozenset({"XDG_CONFIG_HOME", "LD_LIBRARY_PATH"}), families=("LC_",))
    kept |= _of(environment, _GIT)
    return kept | {"GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": ""}


def python_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Return PYTHONPATH without entries that depend on the folder in which a process starts; nothing where it is unset.

    An empty or relative entry would import whatever lies in that folder.
    """
    entries = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]  # noqa: PTH117 - text, and no file is looked at
    return {"PYTHONPATH": os.pathsep.join(entries)} if entries else {}


def _chosen(
    environment: Mapping[str, str], names: Collection[str], *, families: tuple[str, ...] = ()
) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if (name in names or name.startswith(families) or (families and name.lower() in _PROXIES))
        and not is_secret(name, value)
    }


def _of(environment: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    return {name: environment[name] for name in names if name in environment}
