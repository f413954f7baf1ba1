// Streams, events, capture and graphs. Work runs as late as the API allows: when something waits for it. So a missing
// event between two streams, or a buffer read before it was synchronised, shows every time.
#include <algorithm>
#include <chrono>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "api.h"

namespace stand_in {

struct Graph {
    struct Node {
        std::function<Result()> work;
        std::vector<size_t> after;
        NodeType type = KERNEL;
        int priority = 0;
        std::string what;  // members of a JSON object
    };
    std::vector<Node> nodes;
    // While it is captured:
    std::vector<size_t> let_go;  // need not lead to its end
    Stream* origin = nullptr;
    std::set<Stream*> members;
    bool spoiled = false;
    enum Mode { GLOBAL, THREAD_LOCAL, RELAXED } mode = GLOBAL;
    std::thread::id thread;
};

struct GraphExec {
    std::vector<Graph::Node> nodes;
};

struct Stream {
    struct Entry {
        std::function<Result()> work;
        Stream* awaited = nullptr;  // or a wait for the first `awaited_count` entries of another stream
        uint64_t awaited_count = 0;
    };
    explicit Stream(Context* context) : context(context) {}
    Context* context;
    std::deque<Entry> queue;
    uint64_t submitted = 0, done = 0;
    Result error = SUCCESS;
    Graph* capture = nullptr;
    std::vector<size_t> last_nodes;  // of the capture: what the next node follows
    std::vector<uintptr_t> told;     // the same as handles, after a question for them
};

struct Event {
    Stream* stream = nullptr;
    uint64_t count = 0;  // reached when the stream has done that many entries
    std::chrono::steady_clock::time_point time;
    Graph* capture = nullptr;  // recorded inside this one
    std::vector<size_t> nodes;
};

// The handle of a node is the number of its graph and its own, both counted from 1.
static std::map<uintptr_t, Graph*> graphs;
static constexpr int NODE_BITS = 20;

static uintptr_t handle_of(const Graph* g, size_t node) {
    for (auto& [number, graph] : graphs)
        if (graph == g) return number << NODE_BITS | (node + 1);
    return 0;
}
// Null: there is no such node.
static Graph::Node* find_node(uintptr_t handle) {
    auto found = graphs.find(handle >> NODE_BITS);
    size_t node = (handle & ((uintptr_t(1) << NODE_BITS) - 1)) - 1;
    return found == graphs.end() || node >= found->second->nodes.size() ? nullptr : &found->second->nodes[node];
}
static void forget(Graph* g) {
    for (auto it = graphs.begin(); it != graphs.end(); it++) {
        if (it->second != g) continue;
        graphs.erase(it);
        break;
    }
    delete g;
}

static std::set<Stream*> streams;
static std::set<Event*> events;
static std::map<std::pair<Context*, bool>, Stream*> default_streams;

bool is_capturing(const Stream* stream) { return stream->capture; }

static Result drain(Stream* s, uint64_t until) {
    while (s->done < until && !s->queue.empty()) {
        Stream::Entry entry = std::move(s->queue.front());
        s->queue.pop_front();
        if (entry.awaited && streams.count(entry.awaited)) drain(entry.awaited, entry.awaited_count);
        if (entry.work && !s->error) s->error = entry.work();
        s->done++;
    }
    return s->error;
}

Stream* find_stream(void* handle) {
    uintptr_t number = (uintptr_t)handle;
    if (number > 2) return streams.count((Stream*)handle) ? (Stream*)handle : nullptr;
    Stream*& stream = default_streams[{current_context, number == 2}];
    if (!stream) streams.insert(stream = new Stream(current_context));
    return stream;
}

// Unsafe calls of any thread spoil a global capture, those of its own thread a thread-local one, none a relaxed one.
static bool concerns_this_thread(const Graph* g) {
    return g &&
           (g->mode == Graph::GLOBAL || (g->mode == Graph::THREAD_LOCAL && g->thread == std::this_thread::get_id()));
}

bool refused_by_capture() {
    bool refused = false;
    for (Stream* s : streams)
        if (concerns_this_thread(s->capture)) refused = s->capture->spoiled = true;
    return refused;
}

// As late as possible, but a queue is finite: on a GPU, too, the oldest work has run when it is full.
static constexpr uint64_t QUEUE_LIMIT = 20000;

static void enqueue(Stream* s, Stream::Entry entry) {
    s->queue.push_back(std::move(entry));
    s->submitted++;
    if (settings.eager)
        drain(s, s->submitted);
    else if (s->queue.size() > QUEUE_LIMIT)
        drain(s, s->submitted - QUEUE_LIMIT);
}

Result submit(Stream* s, std::function<Result()> work, NodeType type, std::string what) {
    if (!s) return INVALID_HANDLE;
    if (s->capture) {
        auto& nodes = s->capture->nodes;
        std::vector<size_t> after = s->last_nodes;
        s->last_nodes.clear();
        // As libraries do that capture more than they are asked for: what comes next comes after both, the work and what is before it.
        if (type == HOST) {
            nodes.push_back({[] { return SUCCESS; }, after, EMPTY});
            after = {nodes.size() - 1};
            s->last_nodes = after;
        }
        nodes.push_back({std::move(work), after, type, 0, std::move(what)});
        s->last_nodes.push_back(nodes.size() - 1);
        return SUCCESS;
    }
    enqueue(s, {std::move(work)});
    return SUCCESS;
}

Result synchronize(Stream* s) {
    if (!s) return INVALID_HANDLE;
    if (s->capture) {
        s->capture->spoiled = true;
        return CAPTURE_UNSUPPORTED;
    }
    drain(s, s->submitted);
    return std::exchange(s->error, SUCCESS);
}

Result synchronize_all() {
    if (refused_by_capture()) return CAPTURE_UNSUPPORTED;
    std::vector<Stream*> all(streams.begin(), streams.end());
    static std::mt19937 random(7);
    if (settings.order == Settings::RANDOM) std::shuffle(all.begin(), all.end(), random);
    Result result = SUCCESS;
    for (Stream* s : all) {
        if (s->context != current_context || s->capture) continue;
        if (Result r = synchronize(s)) result = r;
    }
    return result;
}

// Runs the nodes in an order that their edges allow: the unkindest of those when it is not `forward`.
static Result run_graph(const std::vector<Graph::Node>& nodes) {
    static std::mt19937 random(11);
    std::vector<size_t> waits_for(nodes.size()), ready;
    std::vector<std::vector<size_t>> followers(nodes.size());
    for (size_t i = 0; i < nodes.size(); i++) {
        waits_for[i] = nodes[i].after.size();
        for (size_t before : nodes[i].after) followers[before].push_back(i);
        if (!waits_for[i]) ready.push_back(i);
    }
    while (!ready.empty()) {
        auto next = settings.order == Settings::FORWARD   ? std::min_element(ready.begin(), ready.end())
                    : settings.order == Settings::REVERSE ? std::max_element(ready.begin(), ready.end())
                                                          : ready.begin() + random() % ready.size();
        size_t i = *next;
        ready.erase(next);
        if (Result r = nodes[i].work()) return r;
        for (size_t f : followers[i])
            if (--waits_for[f] == 0) ready.push_back(f);
    }
    return SUCCESS;
}

// All nodes must lead to the stream that began the capture, but for those that were taken out of what it waits for.
static bool all_joined(const Graph& g, const std::vector<size_t>& last) {
    std::set<size_t> reached;
    std::vector<size_t> todo = last;
    todo.insert(todo.end(), g.let_go.begin(), g.let_go.end());
    while (!todo.empty()) {
        size_t i = todo.back();
        todo.pop_back();
        if (reached.insert(i).second) todo.insert(todo.end(), g.nodes[i].after.begin(), g.nodes[i].after.end());
    }
    return reached.size() == g.nodes.size();
}

}  // namespace stand_in

using namespace stand_in;

// ---- Streams ------------------------------------------------------------------------------------------------------

API cuStreamCreate(Stream** stream, unsigned) {
    LOCKED;
    if (!current_context) return INVALID_CONTEXT;
    streams.insert(*stream = new Stream(current_context));
    return SUCCESS;
}
API cuStreamCreateWithPriority(Stream** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
API cuStreamDestroy_v2(Stream* s) {
    LOCKED;
    if (!streams.count(s)) return INVALID_HANDLE;
    drain(s, s->submitted);
    for (Event* e : events)
        if (e->stream == s) e->stream = nullptr;
    streams.erase(s);
    delete s;
    return SUCCESS;
}
API cuStreamSynchronize(void* handle) {
    LOCKED;
    return synchronize(find_stream(handle));
}
API cuStreamQuery(void* handle) {
    LOCKED;
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    if (s->capture) return synchronize(s);
    return s->queue.empty() ? s->error : NOT_READY;
}
API cuStreamWaitEvent(void* handle, Event* e, unsigned) {
    LOCKED;
    Stream* s = find_stream(handle);
    if (!s || !events.count(e)) return INVALID_HANDLE;
    if (e->capture) {  // a wait for a captured event draws the stream into the capture
        if (s->capture && s->capture != e->capture) return CAPTURE_ISOLATION;
        if (!s->capture) {
            s->capture = e->capture;
            s->last_nodes.clear();
            e->capture->members.insert(s);
        }
        s->last_nodes.insert(s->last_nodes.end(), e->nodes.begin(), e->nodes.end());
        return SUCCESS;
    }
    if (!e->stream) return SUCCESS;  // never recorded
    if (s->capture) {
        s->capture->spoiled = true;
        return CAPTURE_ISOLATION;
    }
    if (e->stream != s) enqueue(s, {nullptr, e->stream, e->count});
    return SUCCESS;
}
API cuLaunchHostFunc(void* handle, void (*function)(void*), void* argument) {
    LOCKED;
    auto work = [=] {
        function(argument);
        return SUCCESS;
    };
    return submit(find_stream(handle), work, HOST);
}

// ---- Events -------------------------------------------------------------------------------------------------------

API cuEventCreate(Event** e, unsigned) {
    LOCKED;
    events.insert(*e = new Event);
    return SUCCESS;
}
API cuEventDestroy_v2(Event* e) {
    LOCKED;
    if (!events.erase(e)) return INVALID_HANDLE;
    delete e;
    return SUCCESS;
}
API cuEventRecord(Event* e, void* handle) {
    LOCKED;
    Stream* s = find_stream(handle);
    if (!s || !events.count(e)) return INVALID_HANDLE;
    if (s->capture) {
        e->capture = s->capture;
        e->nodes = s->last_nodes;
        return SUCCESS;
    }
    e->capture = nullptr;
    e->stream = s;
    e->count = s->submitted + 1;
    enqueue(s, {[e] {
                if (events.count(e)) e->time = std::chrono::steady_clock::now();
                return SUCCESS;
            }});
    return SUCCESS;
}
API cuEventSynchronize(Event* e) {
    LOCKED;
    if (!events.count(e)) return INVALID_HANDLE;
    if (e->capture) {
        e->capture->spoiled = true;
        return CAPTURE_UNSUPPORTED;
    }
    return e->stream ? drain(e->stream, e->count) : SUCCESS;
}
API cuEventQuery(Event* e) {
    LOCKED;
    if (!events.count(e)) return INVALID_HANDLE;
    return !e->stream || e->stream->done >= e->count ? SUCCESS : NOT_READY;
}
API cuEventElapsedTime_v2(float* milliseconds, Event* from, Event* to) {
    LOCKED;
    for (Event* e : {from, to}) {
        if (!events.count(e)) return INVALID_HANDLE;
        if (e->stream && e->stream->done < e->count) return NOT_READY;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    return SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, Event* from, Event* to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

// ---- Capture and graphs -------------------------------------------------------------------------------------------

API cuStreamBeginCapture_v2(void* handle, int mode) {
    LOCKED;
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    if (!handle) return CAPTURE_UNSUPPORTED;
    if (s->capture) return CAPTURE_INVALIDATED;
    if (settings.capture == Settings::NONE) return NOT_SUPPORTED;
    static uintptr_t number;
    Graph* g = s->capture = graphs[++number] = new Graph;
    g->mode = (Graph::Mode)mode;
    g->thread = std::this_thread::get_id();
    g->origin = s;
    g->members.insert(s);
    s->last_nodes.clear();
    return SUCCESS;
}
API cuStreamIsCapturing(void* handle, int* status) {
    LOCKED;
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    *status = !s->capture ? 0 : s->capture->spoiled ? 2 : 1;
    return SUCCESS;
}
// No edges carry data, but whoever has no place for them is not answered, as where they do.
API cuStreamGetCaptureInfo_v3(void* handle, int* status, uint64_t*, Graph** graph, const uintptr_t** nodes, const void** edges,
                              size_t* count) {
    LOCKED;
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    if (nodes && !edges) return LOSSY_QUERY;
    if (edges) *edges = nullptr;
    *status = !s->capture ? 0 : s->capture->spoiled ? 2 : 1;
    if (*status != 1) return SUCCESS;
    s->told.clear();
    for (size_t i : s->last_nodes) s->told.push_back(handle_of(s->capture, i));
    if (graph) *graph = s->capture;
    if (nodes) *nodes = s->told.data();
    if (count) *count = s->told.size();
    return SUCCESS;
}
API cuStreamUpdateCaptureDependencies_v2(void* handle, const uintptr_t* nodes, void*, size_t count, unsigned flags) {
    LOCKED;
    enum { ADD = 0, SET = 1 };
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    if (!s->capture) return ILLEGAL_STATE;
    // A list without nodes is a null pointer.
    if (flags > SET || (!count && nodes)) return INVALID_VALUE;
    if (settings.capture == Settings::CHAIN) return NOT_SUPPORTED;
    if (flags == SET) {
        s->capture->let_go.insert(s->capture->let_go.end(), s->last_nodes.begin(), s->last_nodes.end());
        s->last_nodes.clear();
    }
    for (size_t i = 0; i < count; i++) {
        if (!find_node(nodes[i]) || graphs[nodes[i] >> NODE_BITS] != s->capture) return INVALID_VALUE;
        s->last_nodes.push_back((nodes[i] & ((uintptr_t(1) << NODE_BITS) - 1)) - 1);
    }
    return SUCCESS;
}
API cuStreamEndCapture(void* handle, Graph** graph) {
    LOCKED;
    *graph = nullptr;
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    if (!s->capture || s->capture->origin != s) return CAPTURE_UNMATCHED;
    Graph* g = s->capture;
    bool joined = all_joined(*g, s->last_nodes);
    for (Stream* member : g->members) {
        if (!streams.count(member)) continue;
        member->capture = nullptr;
        member->last_nodes.clear();
    }
    for (Event* e : events)
        if (e->capture == g) e->capture = nullptr;
    if (!g->spoiled && joined) {
        *graph = g;
        return SUCCESS;
    }
    Result result = g->spoiled ? CAPTURE_INVALIDATED : CAPTURE_UNJOINED;
    forget(g);
    return result;
}
API cuGraphNodeGetType(uintptr_t handle, int* type) {
    LOCKED;
    Graph::Node* node = find_node(handle);
    if (!node) return INVALID_HANDLE;
    *type = node->type;
    return SUCCESS;
}
API cuGraphKernelNodeSetAttribute(uintptr_t handle, int attribute, const int* value) {
    LOCKED;
    enum { PRIORITY = 8 };
    Graph::Node* node = find_node(handle);
    if (!node || node->type != KERNEL) return INVALID_HANDLE;
    if (attribute != PRIORITY || *value > LEAST_PRIORITY || *value < GREATEST_PRIORITY) return INVALID_VALUE;
    node->priority = *value;
    return SUCCESS;
}
// How many kernels of the graph that was instantiated last have another priority than the least, if priorities are heeded.
static size_t urgent;
EXPORTED size_t stand_in_urgent_kernels() { return urgent; }

// A JSON object for each node: what it waits for and what it is.
static void list_nodes(const Graph& g, const std::string& path) {
    FILE* file = fopen(path.c_str(), "w");
    if (!file) return report("%s cannot be written", path.c_str());
    for (const Graph::Node& node : g.nodes) {
        std::string after;
        for (size_t i : node.after) after += (after.empty() ? "" : ", ") + std::to_string(i);
        fprintf(file, "{\"after\": [%s], \"priority\": %d%s}\n", after.c_str(), node.priority, node.what.c_str());
    }
    fclose(file);
}

API cuGraphInstantiateWithFlags(GraphExec** exec, Graph* g, unsigned long long flags) {
    LOCKED;
    enum { USE_NODE_PRIORITY = 8 };
    urgent = 0;
    if (!settings.nodes.empty()) list_nodes(*g, settings.nodes);
    for (const Graph::Node& node : g->nodes) urgent += flags & USE_NODE_PRIORITY && node.priority != LEAST_PRIORITY;
    *exec = new GraphExec{g->nodes};
    return SUCCESS;
}
API cuGraphDestroy(Graph* g) {
    LOCKED;
    forget(g);
    return SUCCESS;
}
API cuGraphExecDestroy(GraphExec* exec) {
    LOCKED;
    delete exec;
    return SUCCESS;
}
API cuGraphUpload(GraphExec*, void*) { return SUCCESS; }
API cuGraphGetNodes(Graph* g, void**, size_t* count) {
    LOCKED;
    *count = g->nodes.size();
    return SUCCESS;
}
API cuGraphLaunch(GraphExec* exec, void* handle) {
    LOCKED;
    // A copy: the graph may be destroyed before its work has run.
    auto nodes = std::make_shared<std::vector<Graph::Node>>(exec->nodes);
    return submit(find_stream(handle), [nodes] { return run_graph(*nodes); }, EMPTY);
}
