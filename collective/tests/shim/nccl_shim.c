// A shim of NCCL and of the part of the CUDA driver that comes with it: "device" memory is the host's, streams are queues,
// and a communicator joins the threads of one process. It checks the order of calls as NCCL's documentation has it, and
// plays faults that SHIM_FAULT names. It says nothing about real devices.
//
// SHIM_GPUS: number of devices (8). SHIM_FAULT: init | init-hangs | unique-id | enqueue | async | driver, or apart: ranks are
// processes of their own, which think that they have met and never hear of one another.
// Compiled with -DSHIM_OLD it lacks what came after NCCL 2.14.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int fault(const char *name) {
    const char *set = getenv("SHIM_FAULT");
    return set && !strcmp(set, name);
}

// Breaking the rules is a bug of the caller, not a fault: it ends the test.
static void rule(int kept, const char *what) {
    if (kept) return;
    fprintf(stderr, "nccl shim: %s\n", what);
    abort();
}

static void pause_us(long us) {
    struct timespec t = {0, us * 1000};
    nanosleep(&t, NULL);
}

// ---- the CUDA driver ----

typedef struct {
    pthread_mutex_t lock;
    int pending, failed;
} Stream;

static __thread void *current;
static int contexts[64];

int cuInit(unsigned flags) { return flags == 0 && !fault("driver") ? 0 : 999; }
int cuGetErrorString(int code, const char **text) {
    *text = code == 2 ? "out of memory" : code == 999 ? "unknown error" : "an error of the shim";
    return 0;
}
int cuGetErrorName(int code, const char **text) { return cuGetErrorString(code, text); }
int cuDeviceGetCount(int *count) {
    const char *set = getenv("SHIM_GPUS");
    *count = set ? atoi(set) : 8;
    return 0;
}
int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    __atomic_add_fetch(&contexts[device], 1, __ATOMIC_SEQ_CST);
    *context = &contexts[device];
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    rule(__atomic_sub_fetch(&contexts[device], 1, __ATOMIC_SEQ_CST) >= 0, "a context was released twice");
    return 0;
}
int cuDevicePrimaryCtxRelease(int device) { return cuDevicePrimaryCtxRelease_v2(device); }
int cuCtxSetCurrent(void *context) {
    current = context;
    return 0;
}
static void in_context(void) { rule(current != NULL, "a call without a current context"); }
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    in_context();
    if (bytes == 0) return 1;
    void *memory = bytes > (1ull << 40) ? NULL : malloc(bytes);
    *address = (uint64_t)(uintptr_t)memory;
    return memory ? 0 : 2;
}
int cuMemFree_v2(uint64_t address) {
    in_context();
    free((void *)(uintptr_t)address);
    return 0;
}
int cuMemsetD8_v2(uint64_t address, unsigned char byte, size_t bytes) {
    in_context();
    memset((void *)(uintptr_t)address, byte, bytes);
    return 0;
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    in_context();
    memcpy((void *)(uintptr_t)to, from, bytes);
    return 0;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    in_context();
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return 0;
}
int cuStreamCreate(Stream **stream, unsigned flags) {
    in_context();
    rule(flags == 1, "a stream that waits for the default stream");
    *stream = calloc(1, sizeof **stream);
    pthread_mutex_init(&(*stream)->lock, NULL);
    return 0;
}
int cuStreamQuery(Stream *stream) {
    pthread_mutex_lock(&stream->lock);
    int code = stream->failed ? 719 : stream->pending ? 600 : 0;
    pthread_mutex_unlock(&stream->lock);
    return code;
}
int cuStreamDestroy_v2(Stream *stream) {
    rule(stream->pending == 0, "a stream was destroyed with work in it");
    free(stream);
    return 0;
}
int cuEventCreate(void **event, unsigned flags) {
    rule(flags == 2, "an event that takes the time");
    *event = malloc(1);
    return 0;
}
int cuEventRecord(void *event, Stream *stream) { return event && stream ? 0 : 1; }
int cuStreamWaitEvent(Stream *stream, void *event, unsigned flags) { return event && stream && !flags ? 0 : 1; }
int cuEventDestroy_v2(void *event) {
    free(event);
    return 0;
}
static void stream_add(Stream *stream, int n) {
    pthread_mutex_lock(&stream->lock);
    stream->pending += n;
    pthread_mutex_unlock(&stream->lock);
}

// ---- NCCL ----

enum { SUCCESS, CUDA_ERROR, SYSTEM, INTERNAL, ARGUMENT, USAGE, REMOTE, IN_PROGRESS };
enum { MAX_RANKS = 16, MAX_STEPS = 64 };
typedef struct { char bytes[128]; } UniqueId;
typedef struct { size_t size; unsigned magic, version; int blocking; } Config;
typedef enum { ALL_REDUCE, REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, SEND, RECV } Kind;
typedef struct {
    Kind kind;
    const char *from;
    char *to;
    size_t count;
    int type, op, peer;
} Step;

// The ranks with one id.
typedef struct Clique {
    struct Clique *next;
    char id[128];
    int world, users, joined, arrived;
    unsigned round;
    Step steps[MAX_RANKS];
    const Step *mail[MAX_RANKS][MAX_RANKS];
} Clique;

typedef struct Job {
    struct Job *next;
    Stream *stream;
    int count;
    Step steps[MAX_STEPS];
} Job;

typedef struct {
    Clique *clique;
    int rank, state, aborted, finalized, stop;
    pthread_t worker;
    Job *first, **last;
} Comm;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // over all that follows
static Clique *cliques;
static unsigned ids;

static const size_t SIZES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

static Clique *clique_of(const char *id, int world) {
    Clique *c = cliques;
    while (c && memcmp(c->id, id, 128)) c = c->next;
    if (!c) {
        c = calloc(1, sizeof *c);
        memcpy(c->id, id, 128);
        c->world = world;
        c->next = cliques;
        cliques = c;
    }
    c->users++;
    return c;
}

// Waits under the lock until the condition holds; false when this rank gives up.
#define UNTIL(comm, condition) ({ \
    while (!(condition) && !(comm)->aborted) { \
        pthread_mutex_unlock(&lock); \
        pause_us(20); \
        pthread_mutex_lock(&lock); \
    } \
    !(comm)->aborted; })

static int barrier(Comm *comm) {
    Clique *c = comm->clique;
    unsigned round = c->round;
    if (++c->arrived == c->world) {
        c->arrived = 0;
        c->round++;
    }
    return UNTIL(comm, c->round != round);
}

static float bf16_to_f32(uint16_t v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static uint16_t f32_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Folds along the tree that the other transports follow, so that one suite fits all.
#define FOLD(name, acc, load) \
    static acc name(const Step *steps, int first, int count, size_t i, int op) { \
        if (count == 1) return load; \
        int left = 1; \
        while (left * 2 < count) left *= 2; \
        acc a = name(steps, first, left, i, op), b = name(steps, first + left, count - left, i, op); \
        return op == 2 ? (a > b ? a : b) : op == 3 ? (a < b ? a : b) : (acc)(a + b); \
    }
FOLD(fold_f32, float, ((const float *)steps[first].from)[i])
FOLD(fold_f64, double, ((const double *)steps[first].from)[i])
FOLD(fold_bf16, float, bf16_to_f32(((const uint16_t *)steps[first].from)[i]))
FOLD(fold_f16, float, (float)((const _Float16 *)steps[first].from)[i])
FOLD(fold_u64, uint64_t, ((const uint64_t *)steps[first].from)[i])
FOLD(fold_i64, int64_t, ((const int64_t *)steps[first].from)[i])

static void fold(const Step *steps, int world, size_t at, size_t count, int type, int op, char *out) {
    for (size_t k = 0; k < count; k++) {
        size_t i = at + k;
        int mean = op == 4;
        if (type == 7) { float v = fold_f32(steps, 0, world, i, op); ((float *)out)[k] = mean ? v / world : v; }
        if (type == 8) { double v = fold_f64(steps, 0, world, i, op); ((double *)out)[k] = mean ? v / world : v; }
        if (type == 9) { float v = fold_bf16(steps, 0, world, i, op); ((uint16_t *)out)[k] = f32_to_bf16(mean ? v / world : v); }
        if (type == 6) { float v = fold_f16(steps, 0, world, i, op); ((_Float16 *)out)[k] = (_Float16)(mean ? v / world : v); }
        if (type == 4 && op != 2 && op != 3) { int64_t v = (int64_t)fold_u64(steps, 0, world, i, op); ((int64_t *)out)[k] = mean ? v / world : v; }
        if (type == 4 && (op == 2 || op == 3)) ((int64_t *)out)[k] = fold_i64(steps, 0, world, i, op);
    }
}

static int collective(Comm *comm, const Step *step) {
    Clique *c = comm->clique;
    c->steps[comm->rank] = *step;
    if (!barrier(comm)) return 0;
    for (int r = 0; r < c->world; r++) {
        Step *s = &c->steps[r];
        rule(s->kind == step->kind && s->count == step->count && s->type == step->type && s->op == step->op,
             "ranks called different operations, which hangs or corrupts memory");
    }
    size_t size = SIZES[step->type], bytes = step->count * size;
    size_t length = step->kind == ALL_GATHER ? bytes * c->world : bytes;
    char *out = malloc(length + 1);
    if (step->kind == ALL_REDUCE || step->kind == REDUCE) fold(c->steps, c->world, 0, step->count, step->type, step->op, out);
    if (step->kind == REDUCE_SCATTER) fold(c->steps, c->world, step->count * comm->rank, step->count, step->type, step->op, out);
    if (step->kind == ALL_GATHER)
        for (int r = 0; r < c->world; r++) memcpy(out + r * bytes, c->steps[r].from, bytes);
    if (step->kind == BROADCAST) memcpy(out, c->steps[step->peer].from, bytes);
    int go = barrier(comm); // everybody has read
    if (go && (step->kind != REDUCE || step->peer == comm->rank)) memcpy(step->to, out, length);
    free(out);
    return go && barrier(comm); // and nobody goes on before all have written
}

static int message(Comm *comm, const Step *step) {
    Clique *c = comm->clique;
    if (step->kind == SEND) {
        const Step **mail = &c->mail[comm->rank][step->peer];
        if (!UNTIL(comm, *mail == NULL)) return 0;
        *mail = step;
        return UNTIL(comm, *mail != step);
    }
    const Step **mail = &c->mail[step->peer][comm->rank];
    if (!UNTIL(comm, *mail != NULL)) return 0;
    rule((*mail)->count == step->count && (*mail)->type == step->type, "a receive of another size than its send");
    memcpy(step->to, (*mail)->from, step->count * SIZES[step->type]);
    *mail = NULL;
    return 1;
}

static void *work(void *argument) {
    Comm *comm = argument;
    pthread_mutex_lock(&lock);
    comm->clique->joined++;
    if (fault("init")) comm->state = SYSTEM;
    int met = !fault("init-hangs") && (fault("apart") || UNTIL(comm, comm->clique->joined >= comm->clique->world));
    if (met && comm->state == IN_PROGRESS) {
        pthread_mutex_unlock(&lock);
        pause_us(1000);
        pthread_mutex_lock(&lock);
        comm->state = SUCCESS;
    }
    for (;;) {
        UNTIL(comm, comm->first || comm->stop);
        Job *job = comm->first;
        if (!job) break;
        comm->first = job->next;
        if (!comm->first) comm->last = &comm->first;
        comm->state = fault("async") ? REMOTE : comm->state == IN_PROGRESS ? SUCCESS : comm->state;
        for (int n = 0; n < job->count && !comm->aborted && !fault("async"); n++) {
            const Step *step = &job->steps[n];
            step->kind == SEND || step->kind == RECV ? message(comm, step) : collective(comm, step);
        }
        if (fault("async")) UNTIL(comm, 0); // its kernel never ends
        stream_add(job->stream, -1);
        free(job);
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

static int new_comm(Comm **out, const char *id, int rank, int world) {
    Comm *comm = calloc(1, sizeof *comm);
    comm->rank = rank;
    comm->state = IN_PROGRESS;
    comm->last = &comm->first;
    comm->clique = clique_of(id, world);
    pthread_create(&comm->worker, NULL, work, comm);
    *out = comm;
    return IN_PROGRESS;
}

const char *ncclGetErrorString(int code) {
    return code == SYSTEM ? "unhandled system error" : code == REMOTE ? "remote process exited or there was a network error"
        : code == ARGUMENT ? "invalid argument" : code == USAGE ? "invalid usage" : "another error";
}
const char *ncclGetLastError(void *comm) { return comm ? "" : "said by the shim"; }
int ncclGetVersion(int *version) {
    *version = 22304;
    return SUCCESS;
}
int ncclGetUniqueId(UniqueId *id) {
    if (fault("unique-id")) return SYSTEM;
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, 128, "shim-%d-%u", getpid(), __atomic_add_fetch(&ids, 1, __ATOMIC_SEQ_CST));
    return SUCCESS;
}
int ncclCommInitRankConfig(Comm **out, int world, UniqueId id, int rank, Config *config) {
    in_context();
    rule(config && config->magic == 0xcafebeef && config->version >= 21400 && config->size >= sizeof *config, "a broken config");
    rule(config->blocking == 0, "a blocking communicator");
    if (rank < 0 || rank >= world || world > MAX_RANKS) return ARGUMENT;
    pthread_mutex_lock(&lock);
    int code = new_comm(out, id.bytes, rank, world);
    pthread_mutex_unlock(&lock);
    return code;
}
int ncclCommGetAsyncError(Comm *comm, int *state) {
    pthread_mutex_lock(&lock);
    *state = comm->state;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
#ifndef SHIM_OLD
static int derive(Comm *comm, const char *word, int color, int rank, int world, Comm **out) {
    char id[128] = {0};
    snprintf(id, 128, "%.80s-%s-%d", comm->clique->id, word, color);
    pthread_mutex_lock(&lock);
    int code = new_comm(out, id, rank, world);
    pthread_mutex_unlock(&lock);
    return code;
}
// Splits even ranks from odd ones: enough to see that colour and key arrive.
int ncclCommSplit(Comm *comm, int color, int key, Comm **out, Config *config) {
    rule(config && config->blocking == 0, "a blocking communicator");
    rule(color == comm->rank % 2 && key == comm->rank, "a colour or key that the test did not give");
    return derive(comm, "split", color, comm->rank / 2, (comm->clique->world + 1 - color) / 2, out);
}
int ncclCommShrink(Comm *comm, int *lost, int count, Comm **out, Config *config, int flags) {
    rule(config && config->blocking == 0 && flags == 1, "a shrink that waits for the dead");
    int rank = comm->rank;
    for (int n = 0; n < count; n++) rank -= lost[n] < comm->rank;
    return derive(comm, "shrink", 0, rank, comm->clique->world - count, out);
}
#endif

static __thread int depth;
static __thread Job *group;
static __thread Comm *group_comm;

int ncclGroupStart(void) {
    depth++;
    return SUCCESS;
}
static int put(Kind kind, const void *from, void *to, size_t count, int type, int op, int peer, Comm *comm, Stream *stream) {
    in_context();
    rule(depth == 1, "an operation outside a group");
    rule(!comm->finalized && stream, "an operation on a communicator that is ended, or without a stream");
    if (fault("enqueue")) return ARGUMENT;
    pthread_mutex_lock(&lock);
    rule(comm->state == SUCCESS, "an operation on a communicator that is at work or broken");
    pthread_mutex_unlock(&lock);
    rule(!group_comm || group_comm == comm, "one group over two communicators");
    if (!group) group = calloc(1, sizeof *group);
    rule(group->count < MAX_STEPS, "a group that is too long for the shim");
    group_comm = comm;
    group->stream = stream;
    group->steps[group->count++] = (Step){kind, from, to, count, type, op, peer};
    return SUCCESS;
}
int ncclGroupEnd(void) {
    rule(depth == 1, "a group that was not begun");
    depth = 0;
    Job *job = group;
    Comm *comm = group_comm;
    group = NULL;
    group_comm = NULL;
    if (!job) return SUCCESS;
    stream_add(job->stream, 1);
    pthread_mutex_lock(&lock);
    comm->state = IN_PROGRESS;
    *comm->last = job;
    comm->last = &job->next;
    pthread_mutex_unlock(&lock);
    return IN_PROGRESS;
}
int ncclAllReduce(const void *from, void *to, size_t n, int type, int op, Comm *comm, Stream *s) {
    return put(ALL_REDUCE, from, to, n, type, op, 0, comm, s);
}
int ncclReduce(const void *from, void *to, size_t n, int type, int op, int root, Comm *comm, Stream *s) {
    return put(REDUCE, from, to, n, type, op, root, comm, s);
}
int ncclReduceScatter(const void *from, void *to, size_t n, int type, int op, Comm *comm, Stream *s) {
    rule((const char *)to == (const char *)from + n * SIZES[type] * comm->rank, "a reduce-scatter that is not in place");
    return put(REDUCE_SCATTER, from, to, n, type, op, 0, comm, s);
}
int ncclAllGather(const void *from, void *to, size_t n, int type, Comm *comm, Stream *s) {
    rule((const char *)from == (const char *)to + n * SIZES[type] * comm->rank, "an allgather that is not in place");
    return put(ALL_GATHER, from, to, n, type, 0, 0, comm, s);
}
int ncclBroadcast(const void *from, void *to, size_t n, int type, int root, Comm *comm, Stream *s) {
    return put(BROADCAST, from, to, n, type, 0, root, comm, s);
}
int ncclSend(const void *from, size_t n, int type, int peer, Comm *comm, Stream *s) {
    return put(SEND, from, NULL, n, type, 0, peer, comm, s);
}
int ncclRecv(void *to, size_t n, int type, int peer, Comm *comm, Stream *s) {
    return put(RECV, NULL, to, n, type, 0, peer, comm, s);
}

static void end(Comm *comm, int aborted) {
    pthread_mutex_lock(&lock);
    comm->aborted |= aborted;
    comm->stop = 1;
    pthread_mutex_unlock(&lock);
    pthread_join(comm->worker, NULL);
    pthread_mutex_lock(&lock);
    for (Job *job = comm->first; job; job = comm->first) {
        comm->first = job->next;
        stream_add(job->stream, -1);
        free(job);
    }
    pthread_mutex_unlock(&lock); // cliques stay: another rank may still look
    free(comm);
}
int ncclCommFinalize(Comm *comm) {
    rule(!comm->finalized, "a communicator was finalized twice");
    comm->finalized = 1;
    return SUCCESS;
}
int ncclCommDestroy(Comm *comm) {
    rule(comm->finalized, "a non-blocking communicator was destroyed without being finalized");
    end(comm, 0);
    return SUCCESS;
}
int ncclCommAbort(Comm *comm) {
    end(comm, 1);
    return SUCCESS;
}
