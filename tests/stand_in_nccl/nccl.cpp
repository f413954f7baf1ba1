// A stand-in for NCCL (libnccl.so.2): ranks are processes of one machine that meet in a file of shared memory. A collective is a
// function of the stream, run by the stand-in driver when it comes to it, and summed in the order of ranks.
//
// Faults are planted by STAND_IN_NCCL_FAULT, "KIND:RANK:NUMBER": in its NUMBER-th collective, counted from 1, that rank
//   kill   kills itself
//   hang   waits for ever
//   late   comes two seconds later than the others
//   size   brings a number less than the others
//   error  finds a network error
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

enum Result { SUCCESS = 0, SYSTEM_ERROR = 2, INTERNAL_ERROR = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };
enum Kind { FLOAT32 = 7, FLOAT64 = 8 };

constexpr int MOST_RANKS = 16;
constexpr size_t CHUNK = size_t(1) << 16;  // bytes that a rank brings at a time

struct Shared {
    std::atomic<int> arrived[2], phase;
    std::atomic<uint64_t> count[MOST_RANKS];  // what each brings to the collective at hand
    char data[MOST_RANKS][CHUNK];
};

struct Comm {
    Shared* shared;
    std::string path;
    int rank, ranks;
    std::atomic<bool> aborted{false};
    std::atomic<int> error{SUCCESS};
    long collectives = 0;
};

struct Id {
    char path[128];
};

// Waits until all have come. False: this rank has given up.
bool barrier(Comm* c) {
    Shared& s = *c->shared;
    int phase = s.phase.load();
    if (s.arrived[phase & 1].fetch_add(1) + 1 == c->ranks) {
        s.arrived[phase & 1] = 0;
        s.phase = phase + 1;
        return true;
    }
    for (int i = 0; s.phase.load() == phase; i++) {
        if (c->aborted) return false;
        if (i > 200) usleep(i > 2000 ? 1000 : 50);
    }
    return true;
}

void* driver(const char* name) {
    static void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    return library ? dlsym(library, name) : nullptr;
}

struct Fault {
    std::string kind;
    int rank = -1;
    long number = 0;
    Fault() {
        const char* text = getenv("STAND_IN_NCCL_FAULT");
        char word[16] = "";
        if (text && sscanf(text, "%15[a-z]:%d:%ld", word, &rank, &number) == 3) kind = word;
    }
};

// What a rank does in a collective beside what it should; true: it goes no further.
bool plant(Comm* c, size_t& count) {
    static const Fault fault;
    if (++c->collectives != fault.number || c->rank != fault.rank) return false;
    if (fault.kind == "kill") raise(SIGKILL);
    while (fault.kind == "hang" && !c->aborted) usleep(1000);
    if (fault.kind == "late") sleep(2);
    if (fault.kind == "size") count--;
    if (fault.kind == "error") c->error = SYSTEM_ERROR;
    return c->aborted || c->error;
}

template <class T>
void sum(Comm* c, T* out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        T total = 0;
        for (int r = 0; r < c->ranks; r++) total += ((T*)c->shared->data[r])[i];
        out[i] = total;
    }
}

void run(Comm* c, const char* from, char* to, size_t count, int kind, int root) {
    if (c->aborted || c->error || plant(c, count)) return;
    size_t size = kind == FLOAT32 ? 4 : 8;
    c->shared->count[c->rank] = count;
    if (!barrier(c)) return;
    for (int r = 0; r < c->ranks; r++)
        if (c->shared->count[r] != count) c->error = INVALID_ARGUMENT;  // the real one hangs, or sums what does not belong together
    if (!barrier(c) || c->error) return;
    for (size_t at = 0; at < count * size; at += CHUNK) {
        size_t bytes = std::min(CHUNK, count * size - at);
        memcpy(c->shared->data[c->rank], from + at, bytes);
        if (!barrier(c)) return;
        if (root >= 0)
            memcpy(to + at, c->shared->data[root], bytes);
        else if (kind == FLOAT32)
            sum(c, (float*)(to + at), bytes / 4);
        else
            sum(c, (double*)(to + at), bytes / 8);
        if (!barrier(c)) return;
    }
}

int depth = 0;  // of groups
std::vector<std::function<int()>> grouped;

int submit(Comm* c, const void* from, void* to, size_t count, int kind, int root, void* stream) {
    if (!c || c->aborted) return INVALID_USAGE;
    if (kind != FLOAT32 && kind != FLOAT64) return INVALID_ARGUMENT;
    auto launch = (int (*)(void*, void (*)(void*), void*))driver("cuLaunchHostFunc");
    if (!launch) return INTERNAL_ERROR;
    // Kept for ever, as a captured one may be run at any time.
    auto* work = new std::function<void()>([=] { run(c, (const char*)from, (char*)to, count, kind, root); });
    auto call = [](void* work) { (*(std::function<void()>*)work)(); };
    auto enqueue = [=] { return launch(stream, call, work) ? (int)INTERNAL_ERROR : (int)SUCCESS; };
    if (!depth) return enqueue();
    grouped.push_back(enqueue);
    return SUCCESS;
}

}  // namespace

EXPORTED int ncclGetVersion(int* version) {
    *version = 22907;
    return SUCCESS;
}
EXPORTED int ncclGetUniqueId(Id* id) {
    memset(id, 0, sizeof *id);
    snprintf(id->path, sizeof id->path, "/dev/shm/stand-in-nccl-%d-%ld", (int)getpid(), random() ^ (long)id);
    int file = open(id->path, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (file < 0 || ftruncate(file, sizeof(Shared))) return SYSTEM_ERROR;
    close(file);
    return SUCCESS;
}
EXPORTED int ncclCommInitRank(Comm** comm, int ranks, Id id, int rank) {
    if (ranks > MOST_RANKS || rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
    int file = open(id.path, O_RDWR);
    if (file < 0) return SYSTEM_ERROR;
    void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return SYSTEM_ERROR;
    *comm = new Comm{(Shared*)memory, id.path, rank, ranks};
    barrier(*comm);
    unlink(id.path);
    return SUCCESS;
}
EXPORTED int ncclCommDestroy(Comm* c) {
    munmap(c->shared, sizeof(Shared));
    return SUCCESS;
}
EXPORTED int ncclCommAbort(Comm* c) {
    c->aborted = true;
    return SUCCESS;
}
EXPORTED int ncclCommGetAsyncError(Comm* c, int* error) {
    *error = c->error;
    return SUCCESS;
}
EXPORTED int ncclAllReduce(const void* from, void* to, size_t count, int kind, int operation, Comm* c, void* stream) {
    return operation == 0 ? submit(c, from, to, count, kind, -1, stream) : (int)INVALID_ARGUMENT;
}
EXPORTED int ncclBroadcast(const void* from, void* to, size_t count, int kind, int root, Comm* c, void* stream) {
    return submit(c, from, to, count, kind, root, stream);
}
EXPORTED int ncclGroupStart() {
    depth++;
    return SUCCESS;
}
EXPORTED int ncclGroupEnd() {
    if (!depth || --depth) return depth ? SUCCESS : INVALID_USAGE;
    int result = SUCCESS;
    for (auto& enqueue : grouped)
        if (int r = enqueue()) result = r;
    grouped.clear();
    return result;
}
EXPORTED const char* ncclGetErrorString(int code) {
    switch (code) {
        case SUCCESS: return "no error";
        case SYSTEM_ERROR: return "unhandled system error";
        case INTERNAL_ERROR: return "internal error";
        case INVALID_ARGUMENT: return "invalid argument";
        case INVALID_USAGE: return "invalid usage";
        case REMOTE_ERROR: return "remote process exited or there was a network error";
        default: return "unknown result code";
    }
}
