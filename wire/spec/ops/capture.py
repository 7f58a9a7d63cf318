"""Graphs: codes 80 to 129.

Captures and graphs live in the client: what reaches the worker is one finished definition for each executable graph,
made of nodes (each carries the operation that it runs) and edges, then its instantiation and its launches. No stream
of the worker ever captures.
"""

from wire.spec.ops.definition import op

op(
    80,
    "GRAPH_DEFINE",
    "exec:u32 node_count:u32 callback:u32 word:u32 host_base:u64",
    "",
    "begins the definition of executable graph `exec`; host nodes announce themselves in words[word] as "
    "generation << 16 | host node, count generations on from host_base, and wait for client_words[callback]",
)
op(
    81,
    "GRAPH_NODE",
    "exec:u32 node:u32 kind:u32 host_node:u32",
    "",
    "adds a node; kind 0: runs the operation in the tail, 1: empty, 2: host function number host_node",
    tail="kind 0: one operation with its header",
)
op(
    82,
    "GRAPH_EDGES",
    "exec:u32 count:u32",
    "",
    "adds edges",
    tail="count x (u32 from, u32 to, u32 from_port, u32 type)",
)
op(
    83,
    "GRAPH_INSTANTIATE",
    "exec:u32 pad:u32 instantiate_flags:u64",
    "reply charges",
    "cuGraphInstantiateWithFlags; tells the first error of the definition too",
    reply="error_node:u32 pad:u32",
)
op(84, "GRAPH_LAUNCH", "exec:u32 pad:u32", "work bulk_in bulk_out gpu_time charges", "cuGraphLaunch on header.stream")
op(85, "GRAPH_UPLOAD", "exec:u32 pad:u32", "stream charges", "cuGraphUpload on header.stream")
op(86, "GRAPH_DESTROY", "exec:u32 pad:u32", "", "cuGraphExecDestroy; launched work goes on")
op(
    87,
    "GRAPH_UPDATE",
    "exec:u32 source:u32",
    "reply",
    "cuGraphExecUpdate of `exec` from the definition under `source`, which need not be instantiated",
    reply="update_result:u32 error_node:u32 error_from_node:u32 pad:u32",
)
op(
    88,
    "GRAPH_SET_NODE",
    "exec:u32 node:u32 kind:u32 host_node:u32",
    "reply",
    "cuGraphExec...NodeSetParams: the node runs another operation from the next launch on",
    tail="as of GRAPH_NODE",
)
op(89, "GRAPH_SET_ENABLED", "exec:u32 node:u32 enabled:u32 pad:u32", "reply", "cuGraphNodeSetEnabled")
