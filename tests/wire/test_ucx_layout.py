"""What wire/include/orion_ucx.h declares of UCX is what a release's headers say (Debian: libucx-dev)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Ours, theirs, and the members by name in both.
STRUCTURES = [
    ("orion_ucp_params", "ucp_params_t",
     "mask field_mask|features features|mt_workers_shared mt_workers_shared|name name"),
    ("orion_ucp_context_attr", "ucp_context_attr_t", "mask field_mask|memory_types memory_types|name name"),
    ("orion_ucp_worker_params", "ucp_worker_params_t",
     "mask field_mask|thread_mode thread_mode|event_fd event_fd|flags flags|client_id client_id"),
    ("orion_ucp_listener_params", "ucp_listener_params_t",
     "mask field_mask|address sockaddr|connection conn_handler|connection.callback conn_handler.cb"),
    ("orion_ucp_listener_attr", "ucp_listener_attr_t", "mask field_mask|address sockaddr"),
    ("orion_ucp_ep_params", "ucp_ep_params_t",
     "mask field_mask|error_mode err_mode|error.callback err_handler.cb|error.argument err_handler.arg|flags flags|"
     "peer sockaddr|peer.length sockaddr.addrlen|connection conn_request|local local_sockaddr"),
    ("orion_ucp_request_param", "ucp_request_param_t",
     "mask op_attr_mask|flags flags|callback cb|datatype datatype|user_data user_data|memory_type memory_type|"
     "length recv_info|memh memh"),
    ("orion_ucp_am_recv_param", "ucp_am_recv_param_t", "attr recv_attr|reply_ep reply_ep"),
    ("orion_ucp_am_handler_param", "ucp_am_handler_param_t",
     "mask field_mask|id id|flags flags|callback cb|argument arg"),
    ("orion_ucp_mem_map_params", "ucp_mem_map_params_t",
     "mask field_mask|address address|length length|flags flags|protection prot|memory_type memory_type"),
]  # fmt: skip
VALUES = [
    ("ORION_UCP_FEATURE_WAKEUP", "UCP_FEATURE_WAKEUP"),
    ("ORION_UCP_FEATURE_AM", "UCP_FEATURE_AM"),
    ("ORION_UCP_PARAM_FEATURES", "UCP_PARAM_FIELD_FEATURES"),
    ("ORION_UCP_PARAM_NAME", "UCP_PARAM_FIELD_NAME"),
    ("ORION_UCP_ATTR_MEMORY_TYPES", "UCP_ATTR_FIELD_MEMORY_TYPES"),
    ("ORION_UCP_WORKER_THREAD_MODE", "UCP_WORKER_PARAM_FIELD_THREAD_MODE"),
    ("ORION_UCP_WORKER_FLAGS", "UCP_WORKER_PARAM_FIELD_FLAGS"),
    ("ORION_UCP_WORKER_IGNORE_REQUEST_LEAK", "UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK"),
    ("ORION_UCP_LISTENER_SOCKADDR", "UCP_LISTENER_PARAM_FIELD_SOCK_ADDR"),
    ("ORION_UCP_LISTENER_CONNECTION", "UCP_LISTENER_PARAM_FIELD_CONN_HANDLER"),
    ("ORION_UCP_LISTENER_ATTR_SOCKADDR", "UCP_LISTENER_ATTR_FIELD_SOCKADDR"),
    ("ORION_UCP_EP_ERROR_MODE", "UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE"),
    ("ORION_UCP_EP_ERROR_HANDLER", "UCP_EP_PARAM_FIELD_ERR_HANDLER"),
    ("ORION_UCP_EP_SOCKADDR", "UCP_EP_PARAM_FIELD_SOCK_ADDR"),
    ("ORION_UCP_EP_FLAGS", "UCP_EP_PARAM_FIELD_FLAGS"),
    ("ORION_UCP_EP_CONNECTION", "UCP_EP_PARAM_FIELD_CONN_REQUEST"),
    ("ORION_UCP_EP_CLIENT_SERVER", "UCP_EP_PARAMS_FLAGS_CLIENT_SERVER"),
    ("ORION_UCP_ERRORS_OF_PEER", "UCP_ERR_HANDLING_MODE_PEER"),
    ("ORION_UCP_EP_CLOSE_FORCE", "UCP_EP_CLOSE_FLAG_FORCE"),
    ("ORION_UCP_OP_CALLBACK", "UCP_OP_ATTR_FIELD_CALLBACK"),
    ("ORION_UCP_OP_USER_DATA", "UCP_OP_ATTR_FIELD_USER_DATA"),
    ("ORION_UCP_OP_FLAGS", "UCP_OP_ATTR_FIELD_FLAGS"),
    ("ORION_UCP_OP_MEMORY_TYPE", "UCP_OP_ATTR_FIELD_MEMORY_TYPE"),
    ("ORION_UCP_AM_REPLY", "UCP_AM_SEND_FLAG_REPLY"),
    ("ORION_UCP_AM_EAGER", "UCP_AM_SEND_FLAG_EAGER"),
    ("ORION_UCP_AM_RNDV", "UCP_AM_SEND_FLAG_RNDV"),
    ("ORION_UCP_AM_RECV_REPLY_EP", "UCP_AM_RECV_ATTR_FIELD_REPLY_EP"),
    ("ORION_UCP_AM_RECV_RNDV", "UCP_AM_RECV_ATTR_FLAG_RNDV"),
    ("ORION_UCP_AM_HANDLER_ID", "UCP_AM_HANDLER_PARAM_FIELD_ID"),
    ("ORION_UCP_AM_HANDLER_CALLBACK", "UCP_AM_HANDLER_PARAM_FIELD_CB"),
    ("ORION_UCP_AM_HANDLER_ARGUMENT", "UCP_AM_HANDLER_PARAM_FIELD_ARG"),
    ("ORION_UCP_MEM_ADDRESS", "UCP_MEM_MAP_PARAM_FIELD_ADDRESS"),
    ("ORION_UCP_MEM_LENGTH", "UCP_MEM_MAP_PARAM_FIELD_LENGTH"),
    ("ORION_UCP_MEM_TYPE", "UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE"),
    ("ORION_UCS_INPROGRESS", "UCS_INPROGRESS"),
    ("ORION_UCS_ERR_BUSY", "UCS_ERR_BUSY"),
    ("ORION_UCS_ERR_LAST", "UCS_ERR_LAST"),
    ("ORION_UCS_MEMORY_HOST", "UCS_MEMORY_TYPE_HOST"),
    ("ORION_UCS_MEMORY_CUDA", "UCS_MEMORY_TYPE_CUDA"),
    ("ORION_UCS_THREAD_SERIALIZED", "UCS_THREAD_MODE_SERIALIZED"),
    ("ORION_UCS_LOG_ERROR", "UCS_LOG_LEVEL_ERROR"),
    ("ORION_UCS_LOG_WARN", "UCS_LOG_LEVEL_WARN"),
    ("(int)ORION_UCX_API_MAJOR", "UCP_API_MAJOR"),
]
# Functions: assigning theirs to our pointer types is checked by the compiler but for names of opaque types, which
# differ; so the number of parameters and their sizes are what is left to compare, in the call below.


def test_layouts_and_values(tmp_path: Path) -> None:
    lines = ["#include <ucp/api/ucp.h>", "#include <ucs/debug/log_def.h>", '#include "orion_ucx.h"']
    lines.append("#define SAME(what, a, b) _Static_assert((long long)(a) == (long long)(b), what);")
    lines.append('SAME("status", sizeof(orion_ucs_status), sizeof(ucs_status_t))')
    lines.append('SAME("memory type", sizeof(int), sizeof(ucs_memory_type_t))')
    for ours, theirs, members in STRUCTURES:
        lines.append(f'SAME("{ours}", sizeof({ours}), sizeof({theirs}))')
        for pair in members.split("|"):
            a, b = pair.split()
            lines.append(f'SAME("{ours}.{a}", offsetof({ours}, {a}), offsetof({theirs}, {b}))')
    lines += [f'SAME("{ours}", {ours}, {theirs})' for ours, theirs in VALUES]
    lines.append("int main(void) { return 0; }")
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines))
    command = ["gcc", "-std=gnu11", "-fsyntax-only", f"-I{ROOT / 'wire' / 'include'}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "ucp/api/ucp.h: No such file" in done.stderr:
        pytest.fail("UCX's headers are missing: tools/setup.sh installs them (Debian: libucx-dev)")
    assert done.returncode == 0, done.stderr
