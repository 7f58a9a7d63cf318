// Part of driver_api.c: streams, events, host functions, threads.

static void test_streams(void) {
  CUstream s = NULL, t = NULL, high = NULL;
  CUcontext owner = NULL;
  unsigned flags = 9;
  int priority = 9, capturing = 9, least = 0, greatest = 0;
  unsigned long long id = 0, id_2 = 0;
  CODE(1, cuStreamCreate(NULL, 0));
  CODE(1, cuStreamCreate(&s, 0x100));
  OK(cuStreamCreate(&s, 0));
  OK(cuStreamCreate(&t, 1));
  OK(cuCtxGetStreamPriorityRange(&least, &greatest));
  OK(cuStreamCreateWithPriority(&high, 1, greatest - 100));
  OK(cuStreamGetPriority(high, &priority));
  IS(greatest, priority);
  OK(cuStreamGetFlags(t, &flags));
  IS(1, flags);
  OK(cuStreamGetFlags(s, &flags));
  IS(0, flags);
  OK(cuStreamGetFlags(NULL, &flags));
  IS(0, flags);
  OK(cuStreamGetCtx(s, &owner));
  TRUE(owner == context);
  OK(cuStreamGetCtx(NULL, &owner));
  TRUE(owner == context);
  OK(cuStreamGetId(s, &id));
  OK(cuStreamGetId(t, &id_2));
  TRUE(id != id_2);
  OK(cuStreamIsCapturing(s, &capturing));
  IS(0, capturing);
  OK(cuStreamQuery(s));
  OK(cuStreamQuery(NULL));
  OK(cuStreamSynchronize(s));
  OK(cuStreamSynchronize(NULL));
  OK(cuStreamSynchronize(CU_STREAM_LEGACY));
  OK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
  CUdeviceptr p = 0;
  OK(cuMemAlloc_v2(&p, 4096));
  OK(cuMemsetD32Async(p, 0, 1024, s));
  OK(launch_add(p, 1024, 1, s));
  OK(cuStreamSynchronize(s));
  OK(cuStreamQuery(s));
  OK(launch_add(p, 1024, 1, CU_STREAM_PER_THREAD));
  OK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
  OK(launch_add(p, 1024, 1, CU_STREAM_LEGACY));
  unsigned out[1024];
  OK(cuMemcpyDtoH_v2(out, p, sizeof out));
  IS(3, out[1023]);
  // A held stream is not ready; others go on.
  gate g = {0};
  OK(cuLaunchHostFunc(t, hold, &g));
  OK(launch_add(p, 1024, 1, t));
  CODE(600, cuStreamQuery(t));
  OK(cuStreamQuery(high));
  OK(cuStreamSynchronize(high));
  OK(cuStreamSynchronize(NULL));  // t is non-blocking
  CODE(600, cuStreamQuery(t));
  g.open = 1;
  OK(cuStreamSynchronize(t));
  OK(cuStreamQuery(t));
  // A blocking stream holds the NULL stream, and NULL's wait covers it.
  gate h = {0};
  OK(cuLaunchHostFunc(s, hold, &h));
  CODE(600, cuStreamQuery(s));
  CODE(600, cuStreamQuery(NULL));
  h.open = 1;
  OK(cuStreamSynchronize(NULL));
  OK(cuStreamQuery(s));
  // NULL and blocking streams are ordered both ways.
  OK(cuMemsetD32Async(p, 0, 1024, NULL));
  int bad = 0;
  for (int i = 0; i < 200; i++) bad += launch_add(p, 1024, 1, i & 1 ? s : NULL) != 0;
  IS(0, bad);
  OK(cuMemcpyDtoH_v2(out, p, sizeof out));
  IS(200, out[77]);
  // Destroyed with work pending: the work is done all the same.
  OK(cuMemsetD32_v2(p, 0, 1024));
  OK(cuCtxSynchronize());
  gate k = {0};
  CUstream short_lived = NULL;
  OK(cuStreamCreate(&short_lived, 1));
  OK(cuLaunchHostFunc(short_lived, hold, &k));
  OK(launch_add(p, 1024, 5, short_lived));
  OK(cuStreamDestroy_v2(short_lived));
  k.open = 1;
  OK(cuCtxSynchronize());
  OK(cuMemcpyDtoH_v2(out, p, sizeof out));
  IS(5, out[0]);
  for (int i = 0; i < 300; i++) {
    CUstream many = NULL;
    bad += cuStreamCreate(&many, i & 1) != 0 || launch_add(p, 1024, 1, many) != 0 || cuStreamDestroy_v2(many) != 0;
  }
  IS(0, bad);
  OK(cuCtxSynchronize());
  // Values written and awaited by streams.
  OK(cuMemsetD32_v2(p, 0, 1024));
  OK(cuCtxSynchronize());
  OK(cuStreamWaitValue32_v2(t, p + 4, 1, CU_STREAM_WAIT_VALUE_GEQ));
  OK(cuMemsetD32Async(p + 8, 42, 1, t));
  CODE(600, cuStreamQuery(t));
  OK(cuStreamWriteValue32_v2(high, p + 4, 1, 0));
  OK(cuStreamSynchronize(t));
  OK(cuMemcpyDtoH_v2(out, p, 16));
  IS(1, out[1]);
  IS(42, out[2]);
  OK(cuStreamDestroy_v2(s));
  OK(cuStreamDestroy_v2(t));
  OK(cuStreamDestroy_v2(high));
  OK(cuMemFree_v2(p));
}

static void test_events(void) {
  CUevent e = NULL, start = NULL, end = NULL, plain = NULL;
  CUstream s = NULL, t = NULL;
  CUdeviceptr p = 0;
  float ms = -1;
  CODE(1, cuEventCreate(NULL, 0));
  CODE(1, cuEventCreate(&e, 0x100));
  OK(cuEventCreate(&e, CU_EVENT_DISABLE_TIMING));
  OK(cuEventCreate(&start, 0));
  OK(cuEventCreate(&end, 0));
  OK(cuEventCreate(&plain, CU_EVENT_BLOCKING_SYNC));
  OK(cuStreamCreate(&s, 1));
  OK(cuStreamCreate(&t, 1));
  OK(cuMemAlloc_v2(&p, 4096));
  OK(cuEventQuery(e));
  OK(cuEventSynchronize(e));
  OK(cuStreamWaitEvent(s, e, 0));
  CODE(400, cuEventElapsedTime(&ms, start, end));
  // Held: not ready, elapsed not ready.
  gate g = {0};
  OK(cuEventRecord(start, s));
  OK(cuLaunchHostFunc(s, hold, &g));
  OK(cuEventRecord(e, s));
  OK(cuEventRecordWithFlags(end, s, 0));
  CODE(600, cuEventQuery(e));
  CODE(600, cuEventQuery(end));
  CODE(600, cuEventElapsedTime(&ms, start, end));
  CODE(400, cuEventElapsedTime(&ms, e, end));
  OK(cuStreamWaitEvent(t, e, 0));
  OK(cuMemsetD32Async(p, 9, 4, t));
  CODE(600, cuStreamQuery(t));
  g.open = 1;
  OK(cuEventSynchronize(e));
  OK(cuEventQuery(e));
  OK(cuStreamSynchronize(t));
  OK(cuStreamSynchronize(s));
  OK(cuEventQuery(end));
  OK(cuEventElapsedTime(&ms, start, end));
  TRUE(ms >= 0);
  // Recorded again: means the new record only.
  for (int i = 0; i < 100; i++) {
    OK(launch_add(p, 4, 1, s));
    OK(cuEventRecord(e, s));
    OK(cuEventSynchronize(e));
    OK(cuEventQuery(e));
  }
  // A chain across streams.
  OK(cuMemsetD32Async(p, 0, 1024, s));
  OK(cuEventRecord(plain, s));
  OK(cuStreamWaitEvent(t, plain, 0));
  int bad = 0;
  for (int i = 0; i < 300; i++) {
    CUstream here = i & 1 ? s : t, there = i & 1 ? t : s;
    bad +=
        launch_add(p, 1024, 1, here) != 0 || cuEventRecord(plain, here) != 0 || cuStreamWaitEvent(there, plain, 0) != 0;
  }
  IS(0, bad);
  OK(cuStreamSynchronize(s));
  OK(cuStreamSynchronize(t));
  unsigned out[1024];
  OK(cuMemcpyDtoH_v2(out, p, sizeof out));
  IS(300, out[1000]);
  // Complete once its stream was waited for, though nobody asked before.
  CUevent fresh = NULL;
  OK(cuEventCreate(&fresh, CU_EVENT_DISABLE_TIMING));
  OK(launch_add(p, 4, 1, s));
  OK(cuEventRecord(fresh, s));
  OK(cuStreamSynchronize(s));
  OK(cuEventQuery(fresh));
  // On the NULL stream: covers the blocking streams before it.
  CUstream blocking = NULL;
  gate h = {0};
  OK(cuStreamCreate(&blocking, 0));
  OK(cuLaunchHostFunc(blocking, hold, &h));
  OK(cuEventRecord(fresh, NULL));
  CODE(600, cuEventQuery(fresh));
  h.open = 1;
  OK(cuEventSynchronize(fresh));
  OK(cuStreamSynchronize(blocking));
  OK(cuStreamQuery(blocking));
  OK(cuStreamDestroy_v2(blocking));
  OK(cuEventDestroy_v2(fresh));
  OK(cuEventRecord(e, NULL));
  OK(cuCtxSynchronize());
  OK(cuEventQuery(e));
  OK(cuEventDestroy_v2(e));
  OK(cuEventDestroy_v2(start));
  OK(cuEventDestroy_v2(end));
  OK(cuEventDestroy_v2(plain));
  OK(cuStreamDestroy_v2(s));
  OK(cuStreamDestroy_v2(t));
  OK(cuMemFree_v2(p));
}

typedef struct trace {
  int order[64];
  volatile int count;
  CUresult inner, status;
} trace;
static trace seen;

static void note(void* data) {
  CUdeviceptr p = 0;
  seen.order[seen.count % 64] = (int)(intptr_t)data;
  seen.count++;
  seen.inner = cuMemAlloc_v2(&p, 16);
}

static void note_stream(CUstream stream, CUresult status, void* data) {
  (void)stream;
  seen.status = status;
  note(data);
}

static void test_callbacks(void) {
  CUstream s = NULL;
  CUdeviceptr p = 0;
  memset(&seen, 0, sizeof seen);
  CODE(1, cuLaunchHostFunc(NULL, NULL, NULL));
  OK(cuStreamCreate(&s, 1));
  OK(cuMemAlloc_v2(&p, 4096));
  for (intptr_t i = 0; i < 10; i++) {
    OK(launch_add(p, 1024, 1, s));
    OK(cuLaunchHostFunc(s, note, (void*)i));
  }
  OK(cuStreamSynchronize(s));
  IS(10, seen.count);
  int sorted = 1;
  for (int i = 0; i < 10; i++) sorted &= seen.order[i] == i;
  TRUE(sorted);
  IS(800, seen.inner);
  seen.status = 99;
  OK(cuStreamAddCallback(s, note_stream, (void*)77, 0));
  OK(cuStreamSynchronize(s));
  IS(0, seen.status);
  IS(77, seen.order[10]);
  CODE(1, cuStreamAddCallback(s, NULL, NULL, 0));
  OK(cuLaunchHostFunc(NULL, note, (void*)5));
  OK(cuStreamSynchronize(NULL));
  IS(12, seen.count);
  OK(cuLaunchHostFunc(CU_STREAM_PER_THREAD, note, (void*)6));
  OK(cuStreamSynchronize(CU_STREAM_PER_THREAD));
  IS(13, seen.count);
  OK(cuMemFree_v2(p));
  OK(cuStreamDestroy_v2(s));
}

static void test_callback_writes(void) {
  CUstream s = NULL;
  CUdeviceptr p = 0;
  unsigned* host = NULL;
  OK(cuStreamCreate(&s, 1));
  OK(cuMemAlloc_v2(&p, 4096));
  OK(cuMemHostAlloc((void**)&host, 4096, 0));
  // What a copy brought is there when the function after it runs, and what the function wrote goes into the next copy.
  OK(cuMemsetD32Async(p, 3, 1024, s));
  OK(cuMemcpyDtoHAsync_v2(host, p, 4096, s));
  gate g = {0};
  OK(cuLaunchHostFunc(s, hold, &g));
  OK(cuMemcpyHtoDAsync_v2(p, host, 4096, s));
  while (!g.entered) usleep(100);
  IS(3, host[1023]);
  host[0] = 99;
  g.open = 1;
  OK(cuStreamSynchronize(s));
  unsigned out[2];
  OK(cuMemcpyDtoH_v2(out, p, 8));
  IS(99, out[0]);
  IS(3, out[1]);
  OK(cuMemFreeHost(host));
  OK(cuMemFree_v2(p));
  OK(cuStreamDestroy_v2(s));
}

typedef struct worker_arguments {
  CUdeviceptr p;
  unsigned bad;
} worker_arguments;

static void* worker(void* data) {
  worker_arguments* w = data;
  CUcontext current = (CUcontext)1;
  CUstream s = NULL;
  CUevent e = NULL;
  w->bad += cuCtxGetCurrent(&current) != 0 || current != NULL;
  w->bad += cuMemAlloc_v2(&w->p, 4096) != 201;
  w->bad += cuCtxSetCurrent(context) != 0;
  w->bad += cuMemAlloc_v2(&w->p, 4096) != 0 || cuStreamCreate(&s, 1) != 0 || cuEventCreate(&e, 2) != 0;
  w->bad += cuMemsetD32Async(w->p, 0, 1024, s) != 0;
  for (int i = 0; i < 200; i++) {
    w->bad += launch_add(w->p, 1024, 1, s) != 0;
    if (i % 20 == 0) w->bad += cuEventRecord(e, s) != 0 || cuEventSynchronize(e) != 0;
  }
  w->bad += cuStreamSynchronize(s) != 0;
  w->bad += launch_add(w->p, 1024, 1, CU_STREAM_PER_THREAD) != 0 || cuStreamSynchronize(CU_STREAM_PER_THREAD) != 0;
  unsigned out[1024] = {0};
  w->bad += cuMemcpyDtoH_v2(out, w->p, sizeof out) != 0 || out[1023] != 201;
  w->bad += cuMemFree_v2(w->p) != 0 || cuEventDestroy_v2(e) != 0 || cuStreamDestroy_v2(s) != 0;
  return NULL;
}

static void test_threads(void) {
  enum { THREADS = 8 };
  pthread_t threads[THREADS];
  worker_arguments arguments[THREADS] = {{0}};
  for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, worker, &arguments[i]);
  unsigned bad = 0;
  for (int i = 0; i < THREADS; i++) {
    pthread_join(threads[i], NULL);
    bad += arguments[i].bad;
  }
  IS(0, bad);
}
