"""Names of all environment variables that mpiboot reads or sets, its own and those of other programs.

Every room may import this module; agents do, so it imports almost nothing. Variables of batch systems are in
`batch/<system>/`, prefixes of MPI's variables in `common.mpi`. A test fails on any other name in the sources.
"""

from envpack.common.places import HOME_VARIABLE, STAGE_ROOT_VARIABLE, TRUSTED_FOLDERS_VARIABLE

# The variables that users set; envpack owns their names.
USER_VARIABLES = (HOME_VARIABLE, STAGE_ROOT_VARIABLE, TRUSTED_FOLDERS_VARIABLE)

# mpiboot's own, set by boot in the ranks, by boot in a batch command (SCHEDULER_FILE), and by submit for the job script.
MPIBOOT_PREFIX = "MPIBOOT_"
JOB_KEY_VARIABLE = "MPIBOOT_JOB_KEY"  # marks the job's processes for its agents
JOB_DIRECTORY_VARIABLE = "MPIBOOT_JOB_DIRECTORY"  # only if the job is encrypted
DASHBOARD_ORIGINS_VARIABLE = "MPIBOOT_DASHBOARD_ORIGINS"  # separated by blanks
# What to add to a nanny's port for the HTTP port of its worker.
WORKER_PAGES_VARIABLE = "MPIBOOT_WORKER_PAGES"
CONTROL_FOLDER_VARIABLE = "MPIBOOT_CONTROL_FOLDER"  # the job's folder on the node
IDLE_TIMEOUT_VARIABLE = "MPIBOOT_IDLE_TIMEOUT_S"  # empty: no idle timeout
# Names, separated by blanks, that neither tasks nor the command inherit; with `*` at its end, all names that begin so.
MPI_ONLY_VARIABLE = "MPIBOOT_MPI_ONLY"
# JSON: preloads and defaults, which rank/run_dask_mpi.py adds to Dask's configuration.
DASK_SETTINGS_VARIABLE = "MPIBOOT_DASK_SETTINGS"
SCHEDULER_FILE_VARIABLE = "MPIBOOT_SCHEDULER_FILE"
SETUP_VARIABLE = "MPIBOOT_SETUP"  # shell lines; the job script evaluates them before anything else
JOB_VARIABLES = (
    *(JOB_KEY_VARIABLE, JOB_DIRECTORY_VARIABLE, DASHBOARD_ORIGINS_VARIABLE, WORKER_PAGES_VARIABLE),
    *(CONTROL_FOLDER_VARIABLE, IDLE_TIMEOUT_VARIABLE, MPI_ONLY_VARIABLE, DASK_SETTINGS_VARIABLE),
    *(SCHEDULER_FILE_VARIABLE, SETUP_VARIABLE),
)

# Dask's. dask.config makes `distributed.comm.require-encryption` of DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION, in any
# case and with any of `-` and `_`.
DASK_PREFIX = "DASK_"
DASK_DISTRIBUTED_PREFIX = "DASK_DISTRIBUTED__"
DASK_OPTIONS_PREFIX = "DASK_MPIBOOT__"  # mpiboot's options in Dask's configuration
DASK_SCHEDULER_ADDRESS = "DASK_SCHEDULER_ADDRESS"
DASK_REQUIRE_ENCRYPTION = "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"
DASK_TLS_PREFIX = (
    "DASK_DISTRIBUTED__COMM__TLS__"  # …SCHEDULER__CERT, …SCHEDULER__KEY, and so on for each role
)
DASK_TLS_CA_FILE = "DASK_DISTRIBUTED__COMM__TLS__CA_FILE"
DASK_DASHBOARD_CA_FILE = "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__CA_FILE"
DASK_DASHBOARD_CERT = "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__CERT"
DASK_DASHBOARD_KEY = "DASK_DISTRIBUTED__SCHEDULER__DASHBOARD__TLS__KEY"

# Variables that name the active environment.
CONDA_PREFIX = "CONDA_PREFIX"
VIRTUAL_ENV = "VIRTUAL_ENV"
PYTHON_NO_USER_SITE = "PYTHONNOUSERSITE"
CONDA_DEFAULT_ENV = "CONDA_DEFAULT_ENV"
CONDA_SHLVL = "CONDA_SHLVL"
ACTIVE_ENVIRONMENT = (CONDA_PREFIX, CONDA_DEFAULT_ENV, CONDA_SHLVL, VIRTUAL_ENV, PYTHON_NO_USER_SITE)
# What conda and venv keep of the shell in which they were activated: prompts, and environments below the active one.
CONDA_SAVED_PREFIX = "__CONDA_SHLVL_"  # …1_NAME: the value that the environment of that level has replaced
CONDA_SHELL = ("CONDA_PROMPT_MODIFIER", "VIRTUAL_ENV_PROMPT")
CONDA_SHELL_PREFIXES = ("CONDA_PREFIX_", "CONDA_STACKED_", CONDA_SAVED_PREFIX)
# A file that bash sources before a script, and the options that it sets then (bash(1)).
BASH_START = ("BASH_ENV", "SHELLOPTS", "BASHOPTS")
PYTHON_PATH = "PYTHONPATH"
# Variables that change where Python finds its own files (python(1)).
PYTHON_VARIABLES = (
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "PYTHONEXECUTABLE",
    "PYTHONSAFEPATH",
    "__PYVENV_LAUNCHER__",
)
# Set for the agents, whose interpreter is on the shared file system. It keeps the dynamic linker of glibc before 2.37
# from looking for libraries in a dozen folders that no environment has, such as lib/tls/haswell (ld.so(8)).
LINKER_PLAIN_SEARCH = {"LD_HWCAP_MASK": "0"}

# Variables of one host, or one login session.
HOST_PREFIXES = ("XDG_SESSION_", "XDG_SEAT", "SSH_", "DBUS_", "TMUX", "GNOME_", "VTE_", "WAYLAND_")
HOST_VARIABLES = (
    *("HOSTNAME", "HOST", "_", "SHLVL", "OLDPWD", "STY", "WINDOW", "WINDOWID"),
    *(
        "XDG_RUNTIME_DIR",
        "XDG_VTNR",
        "XDG_CURRENT_DESKTOP",
        "DISPLAY",
        "XAUTHORITY",
        "SESSION_MANAGER",
        "TERM_SESSION_ID",
        "GPG_AGENT_INFO",
    ),
)
# Of a service that systemd has started (systemd.exec(5)): the batch system's daemon may be one.
SERVICE_VARIABLES = (
    *("INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "NOTIFY_SOCKET", "MANAGERPID"),
    *("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"),
)
# The devices that a job may use on a node, by their numbers there: of NVIDIA, AMD, Intel, Habana, Huawei, AWS and Google.
DEVICES = (
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_MPS_*"),
    *("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
    *("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR", "HABANA_VISIBLE_*", "ASCEND_RT_VISIBLE_DEVICES"),
    *("NEURON_RT_VISIBLE_CORES", "TPU_VISIBLE_*"),
)
# What a site's prolog, or the batch system, may set on each node: folders, tickets, and lists of CPUs.
NODE_FILES = (
    "TMP",
    "TEMP",
    "TEMPDIR",
    "KRB5CCNAME",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "PSM2_*",
    "HFI_UNIT",
)
# Python's ssl writes the keys of all connections to this file, and fails if it cannot (ssl.create_default_context).
TLS_KEY_LOG = "SSLKEYLOGFILE"
NO_COLOR = "NO_COLOR"  # https://no-color.org

# MPI's. PMIX_RANK (Open MPI, and launchers with PMIx) or PMI_RANK (MPICH, and launchers with PMI-2) identifies rank 0.
PMIX_RANK = "PMIX_RANK"
PMI_RANK = "PMI_RANK"
MPI4PY_FINALIZE = "MPI4PY_RC_FINALIZE"
# 0 keeps `from mpi4py import MPI` from MPI_Init, as login nodes may need.
MPI4PY_INITIALIZE = "MPI4PY_RC_INITIALIZE"
# The ranks use MPI only to learn their numbers, for which TCP is enough. Open MPI's libfabric sleeps a second in
# MPI_Init while it looks for faster networks; and ranks that wait in MPI for the scheduler would take CPU time from it.
MPI_TCP_ONLY = {
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "^ofi,uct,openib,usnic",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
# The settings that limit MPI's ports, with places for the first one, the last one, their number, and the launcher's own.
# Open MPI's launcher listens on all ports that it may use, so it gets few (oob/tcp of PRRTE 3; prte_info --all).
MPI_PORTS = {
    "PRTE_MCA_oob_tcp_dynamic_ipv4_ports": "{launcher}",
    "PRTE_MCA_oob_tcp_dynamic_ipv6_ports": "{launcher}",
    "OMPI_MCA_oob_tcp_dynamic_ipv4_ports": "{launcher}",  # Open MPI 4
    "OMPI_MCA_btl_tcp_port_min_v4": "{low}",
    "OMPI_MCA_btl_tcp_port_range_v4": "{count}",
    "OMPI_MCA_btl_tcp_port_min_v6": "{low}",
    "OMPI_MCA_btl_tcp_port_range_v6": "{count}",
    "MPIR_CVAR_CH3_PORT_RANGE": "{low}:{high}",  # MPICH's Hydra reads it, too
    "UCX_TCP_PORT_RANGE": "{low}-{high}",
    "I_MPI_PORT_RANGE": "{low}:{high}",  # Intel MPI
    "FI_TCP_PORT_LOW_RANGE": "{low}",  # libfabric, fi_tcp(7)
    "FI_TCP_PORT_HIGH_RANGE": "{high}",
}
# UCX, below MPICH and Open MPI: its transports, and its network devices.
UCX_TRANSPORTS = "UCX_TLS"
UCX_DEVICES = "UCX_NET_DEVICES"
# Open MPI and PRRTE refuse to start as root without these.
MPI_AS_ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
# Intel MPI (Reference Manual, Fault Tolerance and Pinning): the other ranks survive a lost one; no rank is pinned.
INTEL_FAULT_CONTINUE = "I_MPI_FAULT_CONTINUE"
INTEL_PIN = "I_MPI_PIN"
