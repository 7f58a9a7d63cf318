// What the rest of the engine asks of net.c: the last part of internal.h, which includes it.
#ifndef ORION_ENGINE_NET_CALLS_H
#define ORION_ENGINE_NET_CALLS_H

// ---- net.c (tcp only; e->net is NULL over shm)
/// Receives and sends what can be without waiting. Returns whether anything moved.
bool net_pump(orion_engine* e);
/// Waits for frames, at most this long.
void net_wait(orion_engine* e, uint64_t timeout_ns);
void net_reply(orion_engine* e, uint32_t slot, int32_t result, uint64_t sequence, const void* payload, uint32_t bytes);
void net_word(orion_engine* e, uint32_t word);
/// A marker has been issued: its word is relayed when the GPU has written it, after the bytes of earlier copies out.
void net_marker(orion_engine* e, uint32_t context, uint32_t word, uint64_t value);
/// A copy into the arena was issued behind `track` value `value`.
void net_copy_out(orion_engine* e, uint64_t offset, uint64_t bytes, uint32_t track_index, uint64_t value);
/// The same for rows: `bytes` of each of `rows`, `pitch` apart, and `slices` of those, `slice_pitch` apart.
void net_rows_out(orion_engine* e, const net_rows* rows, uint32_t track_index, uint64_t value);
/// What work up to `value` of the track has changed in a coherent range.
void net_publish(orion_engine* e, uint64_t offset, uint64_t bytes, uint32_t track_index, uint64_t value);
/// True while copies out wait to be sent. The caller's reply then goes behind them with net_after_copies.
bool net_copies_wait(const orion_engine* e);
/// Sends copies out that are complete by now. False: the lane is full and one of them is left.
bool net_copies_sent(orion_engine* e);
/// The next reply is taken by the client when everything sent so far has arrived.
void net_after_copies(orion_engine* e);
/// Bytes that the CPU wrote into the arena and that the next reply speaks of.
void net_bytes_out(orion_engine* e, uint64_t offset, uint64_t bytes);
/// True while a marker or a copy is on its way to the client.
bool net_busy(const orion_engine* e);
/// From any thread: ends a net_wait.
void net_wake(orion_engine* e);
void net_close(orion_engine* e);
void net_free(orion_engine* e);
/// True when a frame's header agrees with its size.
bool net_frame_ok(const uint8_t* data, size_t bytes, orion_frame* head);

// ---- net_ucx_direct.c (only while e->direct is not NULL)
/// Whether an operation may run, as far as its bytes are concerned that go past the arena; false: with a cause.
bool direct_ready(orion_engine* e, const orion_op* op, const parked_op* node);
/// A parked operation that stands behind others: it may be such a copy behind such copies, and then begins.
void direct_follow(orion_engine* e, const orion_op* op);
/// An operation stays parked.
void direct_blocked(orion_engine* e, const orion_op* op);
/// The parked operation is done.
void direct_end(orion_engine* e, const orion_op* op);
/// What of a copy that runs now has been done. REST: the parts that were missing have been issued.
enum direct_outcome { DIRECT_NOTHING, DIRECT_REST, DIRECT_ALL };
enum direct_outcome direct_finish(orion_engine* e, const orion_op* op, CUstream stream, CUresult* code);
/// Whether bytes are on their way to or from device memory. e->direct may be NULL.
bool direct_is_going(const orion_engine* e);
/// Pieces that have come or gone, so far.
uint64_t direct_events(const orion_engine* e);
/// Before the memory of a range goes.
void direct_forget(orion_engine* e, uint64_t serial);
void direct_free(orion_engine* e);

#endif
