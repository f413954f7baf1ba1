// The other driver calls: devices, contexts, memory, modules, launches. Handles are pointers of our own.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>

#include "api.h"

namespace stand_in {

thread_local Context* current_context;
static Context* primary_contexts[MAX_DEVICES];
static bool initialized;

constexpr size_t STATIC_SHARED_LIMIT = size_t(48) << 10;  // without opting in
constexpr size_t SHARED_LIMIT = size_t(227) << 10;

}  // namespace stand_in

using namespace stand_in;

// ---- Devices and contexts -----------------------------------------------------------------------------------------

API cuInit(unsigned) {
    LOCKED;
    initialized = settings.devices > 0 && settings.init == SUCCESS;
    if (settings.init != SUCCESS) return (Result)settings.init;
    return initialized ? SUCCESS : NO_DEVICE;
}
API cuDriverGetVersion(int* version) {
    *version = settings.driver_version;
    return SUCCESS;
}
API cuDeviceGetCount(int* count) {
    *count = settings.devices;
    return initialized ? SUCCESS : NOT_INITIALIZED;
}
API cuDeviceGet(int* device, int ordinal) {
    if (!initialized) return NOT_INITIALIZED;
    *device = ordinal;
    return ordinal >= 0 && ordinal < settings.devices ? SUCCESS : INVALID_DEVICE;
}
API cuDeviceGetName(char* name, int capacity, int) {
    snprintf(name, capacity, "a stand-in GPU");
    return SUCCESS;
}
API cuDeviceGetUuid_v2(char* uuid, int device) {
    memset(uuid, 0xD0, 16);
    uuid[15] = (char)device;
    return SUCCESS;
}
API cuDeviceGetUuid(char* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
API cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = settings.memory;
    return SUCCESS;
}
// Numbers as in CUdevice_attribute. Those of an H100 where they matter, 0 otherwise.
API cuDeviceGetAttribute(int* value, int attribute, int) {
    LOCKED;
    static const std::map<int, int> VALUES = {
        {1, 1024},                      // MAX_THREADS_PER_BLOCK
        {2, 1024},                      // MAX_BLOCK_DIM_X
        {3, 1024},                      // MAX_BLOCK_DIM_Y
        {4, 64},                        // MAX_BLOCK_DIM_Z
        {5, 2147483647},                // MAX_GRID_DIM_X
        {6, 65535},                     // MAX_GRID_DIM_Y
        {7, 65535},                     // MAX_GRID_DIM_Z
        {8, (int)STATIC_SHARED_LIMIT},  // MAX_SHARED_MEMORY_PER_BLOCK
        {9, 65536},                     // TOTAL_CONSTANT_MEMORY
        {10, 32},                       // WARP_SIZE
        {12, 65536},                    // MAX_REGISTERS_PER_BLOCK
        {13, 1980000},                  // CLOCK_RATE, kHz
        {16, 8},                        // MULTIPROCESSOR_COUNT
        {31, 1},                        // CONCURRENT_KERNELS
        {36, 2619000},                  // MEMORY_CLOCK_RATE, kHz
        {37, 5120},                     // GLOBAL_MEMORY_BUS_WIDTH
        {38, 50 << 20},                 // L2_CACHE_SIZE
        {39, 2048},                     // MAX_THREADS_PER_MULTIPROCESSOR
        {40, 3},                        // ASYNC_ENGINE_COUNT
        {41, 1},                        // UNIFIED_ADDRESSING
        {81, 233472},                   // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        {82, 65536},                    // MAX_REGISTERS_PER_MULTIPROCESSOR
        {97, (int)SHARED_LIMIT},        // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        {106, 32},                      // MAX_BLOCKS_PER_MULTIPROCESSOR
        {111, 1024},                    // RESERVED_SHARED_MEMORY_PER_BLOCK
        {115, 1},                       // MEMORY_POOLS_SUPPORTED
    };
    auto found = VALUES.find(attribute);
    *value = attribute == 75         ? settings.capability / 10  // COMPUTE_CAPABILITY_MAJOR
             : attribute == 76       ? settings.capability % 10  // COMPUTE_CAPABILITY_MINOR
             : found != VALUES.end() ? found->second
                                     : 0;
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(Context** context, int device) {
    LOCKED;
    if (device < 0 || device >= MAX_DEVICES) return INVALID_DEVICE;
    if (!primary_contexts[device]) primary_contexts[device] = new Context{device};
    *context = primary_contexts[device];
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxGetCurrent(Context** context) {
    *context = current_context;
    return SUCCESS;
}
API cuCtxSetCurrent(Context* context) {
    current_context = context;
    return SUCCESS;
}
API cuCtxGetDevice(int* device) {
    if (!current_context) return INVALID_CONTEXT;
    *device = current_context->device;
    return SUCCESS;
}
API cuCtxSynchronize() {
    LOCKED;
    return synchronize_all();
}
API cuCtxSetFlags(unsigned) { return SUCCESS; }
API cuCtxGetLimit(size_t* value, int) {
    *value = 1024;
    return SUCCESS;
}
API cuCtxSetLimit(int, size_t) { return SUCCESS; }
API cuCtxGetCacheConfig(int* value) {
    *value = 0;
    return SUCCESS;
}
API cuCtxSetCacheConfig(int) { return SUCCESS; }
API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = LEAST_PRIORITY;
    *greatest = GREATEST_PRIORITY;
    return SUCCESS;
}

// ---- Memory -------------------------------------------------------------------------------------------------------

static Result bad_range(const char* what, uintptr_t start, size_t bytes) {
    report("%s of %zu bytes at %#zx: %s", what, bytes, start, describe_address(start).c_str());
    return INVALID_VALUE;
}

static bool is_pinned(const void* host) {
    Allocation* a = find_allocation((uintptr_t)host);
    return a && a->pinned;
}

static Result allocate_on_device(uintptr_t* start, size_t bytes) {
    if (!current_context) return INVALID_CONTEXT;
    if (!bytes) return INVALID_VALUE;
    *start = (uintptr_t)allocate(bytes, current_context->device, false);
    return *start ? SUCCESS : OUT_OF_MEMORY;
}

API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    LOCKED;
    size_t used = memory_in_use(current_context ? current_context->device : 0);
    *total = settings.memory;
    *free_bytes = settings.memory - std::min(settings.memory, used);
    return SUCCESS;
}
API cuMemAlloc_v2(uintptr_t* start, size_t bytes) {
    LOCKED;
    if (refused_by_capture()) return CAPTURE_UNSUPPORTED;
    return allocate_on_device(start, bytes);
}
API cuMemFree_v2(uintptr_t start) {
    LOCKED;
    if (!start) return SUCCESS;
    if (refused_by_capture()) return CAPTURE_UNSUPPORTED;
    synchronize_all();
    return release(start) ? SUCCESS : INVALID_VALUE;
}
// Stricter than the driver, which would make an allocation node: nothing that is captured should allocate.
API cuMemAllocAsync(uintptr_t* start, size_t bytes, void* handle) {
    LOCKED;
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    if (is_capturing(s)) return synchronize(s);
    return allocate_on_device(start, bytes);
}
API cuMemAllocFromPoolAsync(uintptr_t* start, size_t bytes, void*, void* handle) {
    return cuMemAllocAsync(start, bytes, handle);
}
API cuMemFreeAsync(uintptr_t start, void* handle) {
    LOCKED;
    if (!start) return SUCCESS;
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    if (!find_allocation(start)) return bad_range("free", start, 0);
    if (is_capturing(s)) return synchronize(s);
    return submit(s, [start] { return release(start) ? SUCCESS : bad_range("free", start, 0); }, FILL);
}
API cuMemHostAlloc(void** start, size_t bytes, unsigned) {
    LOCKED;
    *start = allocate(bytes, 0, true);
    return *start ? SUCCESS : OUT_OF_MEMORY;
}
API cuMemFreeHost(void* start) {
    LOCKED;
    synchronize_all();
    return release((uintptr_t)start) ? SUCCESS : INVALID_VALUE;
}
API cuDeviceGetDefaultMemPool(void** pool, int device) {
    *pool = (void*)(uintptr_t)(0x1000 + device);
    return SUCCESS;
}
API cuDeviceGetMemPool(void** pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }
API cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API cuMemPoolGetAttribute(void*, int, void* value) {
    *(uint64_t*)value = 0;
    return SUCCESS;
}
API cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

// ---- Copies and fills ---------------------------------------------------------------------------------------------

// For the list of a graph's nodes.
static std::string describe(const char* what, size_t bytes) {
    return std::string(", \"") + what + "\": " + std::to_string(bytes);
}

static Result copy_to_device(uintptr_t to, const void* from, size_t bytes) {
    if (!in_one_allocation(to, bytes)) return bad_range("copy to the device", to, bytes);
    memcpy((void*)to, from, bytes);
    mark_written(to, bytes);
    return SUCCESS;
}

static Result copy_from_device(void* to, uintptr_t from, size_t bytes) {
    if (!in_one_allocation(from, bytes)) return bad_range("copy from the device", from, bytes);
    memcpy(to, (void*)from, bytes);
    return SUCCESS;
}

static Result copy_on_device(uintptr_t to, uintptr_t from, size_t bytes) {
    if (!in_one_allocation(to, bytes)) return bad_range("copy to the device", to, bytes);
    if (!in_one_allocation(from, bytes)) return bad_range("copy from the device", from, bytes);
    memmove((void*)to, (void*)from, bytes);
    copy_written_marks(to, from, bytes);
    return SUCCESS;
}

API cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t bytes, void* handle) {
    LOCKED;
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    if (!in_one_allocation(to, bytes)) return bad_range("copy to the device", to, bytes);
    // Pinned memory is read when the copy runs (a captured copy keeps the address), other memory before the call
    // returns.
    if (is_capturing(s) || is_pinned(from)) return submit(s, [=] { return copy_to_device(to, from, bytes); }, COPY);
    auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
    return submit(s, [=] { return copy_to_device(to, staged->data(), bytes); }, COPY);
}
API cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t bytes, void* handle) {
    LOCKED;
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    if (!in_one_allocation(from, bytes)) return bad_range("copy from the device", from, bytes);
    Result result = submit(s, [=] { return copy_from_device(to, from, bytes); }, COPY);
    if (result || is_capturing(s) || is_pinned(to)) return result;
    return synchronize(s);  // a copy to memory that is not pinned returns when it is done
}
API cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void* handle) {
    LOCKED;
    return submit(find_stream(handle), [=] { return copy_on_device(to, from, bytes); }, COPY, describe("copy", bytes));
}
API cuMemcpyPeerAsync(uintptr_t to, void*, uintptr_t from, void*, size_t bytes, void* handle) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, handle);
}
API cuMemcpyHtoD_v2(uintptr_t to, const void* from, size_t bytes) {
    LOCKED;
    if (refused_by_capture()) return CAPTURE_UNSUPPORTED;
    synchronize(find_stream(nullptr));
    return copy_to_device(to, from, bytes);
}
API cuMemcpyDtoH_v2(void* to, uintptr_t from, size_t bytes) {
    LOCKED;
    if (refused_by_capture()) return CAPTURE_UNSUPPORTED;
    if (Result r = synchronize(find_stream(nullptr))) return r;
    return copy_from_device(to, from, bytes);
}
API cuMemcpyDtoD_v2(uintptr_t to, uintptr_t from, size_t bytes) {
    LOCKED;
    if (refused_by_capture()) return CAPTURE_UNSUPPORTED;
    synchronize(find_stream(nullptr));
    return copy_on_device(to, from, bytes);
}

template <class T>
static Result fill(uintptr_t start, T value, size_t count, void* handle) {
    auto work = [=] {
        if (!in_one_allocation(start, count * sizeof(T))) return bad_range("memset", start, count * sizeof(T));
        std::fill_n((T*)start, count, value);
        mark_written(start, count * sizeof(T));
        return SUCCESS;
    };
    return submit(find_stream(handle), work, FILL, describe("fill", count * sizeof(T)));
}
API cuMemsetD8Async(uintptr_t start, unsigned char value, size_t count, void* handle) {
    LOCKED;
    return fill(start, value, count, handle);
}
API cuMemsetD32Async(uintptr_t start, unsigned value, size_t count, void* handle) {
    LOCKED;
    if (start % 4) return INVALID_VALUE;
    return fill(start, value, count, handle);
}
API cuMemsetD8_v2(uintptr_t start, unsigned char value, size_t count) {
    LOCKED;
    if (refused_by_capture()) return CAPTURE_UNSUPPORTED;
    fill(start, value, count, nullptr);
    return synchronize(find_stream(nullptr));
}
API cuMemsetD32_v2(uintptr_t start, unsigned value, size_t count) {
    LOCKED;
    if (start % 4) return INVALID_VALUE;
    if (refused_by_capture()) return CAPTURE_UNSUPPORTED;
    fill(start, value, count, nullptr);
    return synchronize(find_stream(nullptr));
}

// ---- Modules ------------------------------------------------------------------------------------------------------

static std::map<std::string, Module*> modules;  // by path; never unloaded

// Where the library lies in memory, and how large its shared variables are.
static int read_program_headers(dl_phdr_info* info, size_t, void* data) {
    Module* m = (Module*)data;
    if (m->path != info->dlpi_name) return 0;
    m->start = UINTPTR_MAX;
    m->tls_id = info->dlpi_tls_modid;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) & header = info->dlpi_phdr[i];
        if (header.p_type == PT_TLS) m->shared_bytes = header.p_memsz;
        if (header.p_type != PT_LOAD) continue;
        m->start = std::min<uintptr_t>(m->start, info->dlpi_addr + header.p_vaddr);
        m->end = std::max<uintptr_t>(m->end, info->dlpi_addr + header.p_vaddr + header.p_memsz);
    }
    return 1;
}

static Result load(Module** out, const std::string& path) {
    auto known = modules.find(path);
    if (known != modules.end()) {
        *out = known->second;
        return SUCCESS;
    }
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "stand-in GPU: %s\n", dlerror());
        return INVALID_IMAGE;
    }
    auto* kernels = (const KernelEntry*)dlsym(library, "stand_in_kernels");
    auto connect = (void (*)(const RuntimeCalls*))dlsym(library, "stand_in_connect");
    if (!kernels || !connect) return INVALID_IMAGE;
    connect(&runtime_calls);
    Module* m = new Module{library, path, kernels, dlsym(library, "stand_in_checked") != nullptr};
    dl_iterate_phdr(read_program_headers, m);
    modules[path] = *out = m;
    return SUCCESS;
}

// An image is two lines, written by the stand-in's NVRTC: where the library lies, and the folder of the stand-in that it was made
// for. One of another version, which a program may have kept, does not fit.
API cuModuleLoadData(Module** module, const void* image) {
    LOCKED;
    static const std::string TAG = "//stand-in-module:";
    const char* text = (const char*)image;
    if (strncmp(text, TAG.c_str(), TAG.size())) return INVALID_PTX;
    text += TAG.size();
    std::string path(text, strcspn(text, "\n"));
    Dl_info info;
    dladdr((void*)cuModuleLoadData, &info);
    std::string own = info.dli_fname, folder = own.substr(0, own.rfind('/')) + "\n";
    const char* made_for = text + path.size();
    if (*made_for != '\n' || strncmp(made_for + 1, folder.c_str(), folder.size())) return INVALID_IMAGE;
    return load(module, path);
}
API cuModuleLoadDataEx(Module** module, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(module, image);
}
API cuModuleLoad(Module** module, const char* path) {
    char image[4096] = "";
    FILE* file = fopen(path, "r");
    if (!file) return FILE_NOT_FOUND;
    image[fread(image, 1, sizeof image - 1, file)] = 0;
    fclose(file);
    return cuModuleLoadData(module, image);
}
API cuModuleUnload(Module*) { return SUCCESS; }  // kept: another handle may stand for the same library
API cuModuleGetFunction(Function** function, Module* module, const char* name) {
    LOCKED;
    for (const KernelEntry* k = module->kernels; k->name; k++) {
        if (strcmp(k->name, name)) continue;
        *function = new Function{module, k, STATIC_SHARED_LIMIT, -1};
        return SUCCESS;
    }
    return NOT_FOUND;
}
API cuModuleGetGlobal_v2(uintptr_t* start, size_t* bytes, Module* module, const char* name) {
    LOCKED;
    void* variable = dlsym(module->library, name);
    Dl_info info;
    ElfW(Sym) * symbol;
    if (!variable || !dladdr1(variable, &info, (void**)&symbol, RTLD_DL_SYMENT)) return NOT_FOUND;
    *start = (uintptr_t)variable;
    *bytes = symbol->st_size;
    add_module_variable(*start, *bytes);
    return SUCCESS;
}

// ---- Functions ----------------------------------------------------------------------------------------------------

API cuFuncGetAttribute(int* value, int attribute, Function* f) {
    switch (attribute) {
        case 0: *value = f->kernel->max_threads ? f->kernel->max_threads : 1024; break;
        case 1: *value = (int)f->module->shared_bytes; break;
        case 4: *value = 32; break;  // registers
        case 5:
        case 6: *value = settings.capability; break;
        case 8: *value = (int)f->dynamic_shared_limit; break;
        default: *value = 0;
    }
    return SUCCESS;
}
API cuFuncSetAttribute(Function* f, int attribute, int value) {
    LOCKED;
    constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8, PREFERRED_SHARED_MEMORY_CARVEOUT = 9;
    if (attribute == PREFERRED_SHARED_MEMORY_CARVEOUT) {
        if (value < -1 || value > 100) return INVALID_VALUE;
        f->carveout = value;
        return SUCCESS;
    }
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return SUCCESS;
    if (value < 0 || (size_t)value > SHARED_LIMIT) return INVALID_VALUE;
    f->dynamic_shared_limit = (size_t)value;
    return SUCCESS;
}
API cuFuncSetCacheConfig(Function*, int) { return SUCCESS; }
API cuFuncGetName(const char** name, Function* f) {
    *name = f->kernel->name;
    return SUCCESS;
}
API cuFuncGetParamInfo(Function* f, size_t index, size_t* offset, size_t* bytes) {
    const KernelEntry& k = *f->kernel;
    if (index >= (size_t)k.parameters) return INVALID_VALUE;
    size_t at = 0;
    for (size_t i = 0; i <= index; i++) {
        at = (at + k.alignment[i] - 1) / k.alignment[i] * k.alignment[i];
        if (i < index) at += k.bytes[i];
    }
    *offset = at;
    if (bytes) *bytes = k.bytes[index];
    return SUCCESS;
}
API cuFuncGetParamCount(Function* f, size_t* count) {
    *count = (size_t)f->kernel->parameters;
    return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function*, int block_threads, size_t) {
    *blocks = std::max(1, std::min(32, 2048 / std::max(1, block_threads)));
    return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* f, int threads, size_t shared,
                                                         unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, f, threads, shared);
}

// ---- Launches -----------------------------------------------------------------------------------------------------

static bool is_valid(const Function& f, uint3 grid, uint3 block, size_t shared) {
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    unsigned limit = f.kernel->max_threads ? (unsigned)f.kernel->max_threads : 1024;
    bool valid = grid.x && grid.y && grid.z && threads && threads <= limit && block.z <= 64 && grid.x <= 2147483647u &&
                 grid.y <= 65535 && grid.z <= 65535 && shared <= f.dynamic_shared_limit;
    if (!valid)
        report(
            "kernel %s: invalid launch, grid (%u,%u,%u), block (%u,%u,%u) of at most %u threads, dynamic shared "
            "memory %zu (limit %zu)",
            f.kernel->name, grid.x, grid.y, grid.z, block.x, block.y, block.z, limit, shared, f.dynamic_shared_limit);
    return valid;
}

// Parameters are copied at the launch, as the driver does it.
struct Parameters {
    std::vector<char> bytes;
    std::vector<size_t> offsets;

    Parameters(const KernelEntry& k, void** values) {
        for (int i = 0; i < k.parameters; i++) {
            size_t offset = (bytes.size() + 15) / 16 * 16;
            offsets.push_back(offset);
            bytes.resize(offset + k.bytes[i]);
            memcpy(bytes.data() + offset, values[i], k.bytes[i]);
        }
    }
    uintptr_t pointer(int i) const { return *(const uintptr_t*)(bytes.data() + offsets[i]); }
};

static bool pointers_are_valid(const KernelEntry& k, const Parameters& parameters) {
    for (int i = 0; i < k.parameters; i++) {
        uintptr_t p = k.is_pointer[i] ? parameters.pointer(i) : 0;
        if (!p || find_allocation(p) || find_allocation(p - 1))
            continue;  // the end of an allocation may be an empty one
        report("kernel %s: parameter %d is %#zx, %s", k.name, i, p, describe_address(p).c_str());
        return false;
    }
    return true;
}

// Kernels that are not checked leave no marks: what they may have written counts as written.
static void trust_outputs(const KernelEntry& k, const Parameters& parameters) {
    for (int i = 0; i < k.parameters; i++) {
        Allocation* a = k.is_pointer[i] ? find_allocation(parameters.pointer(i)) : nullptr;
        if (a && a->shadow) a->shadow->all_written = true;
    }
}

// With a list of kernels that are run, others do nothing.
static bool is_run(const char* name) {
    return settings.only.empty() || ("," + settings.only + ",").find("," + std::string(name) + ",") != std::string::npos;
}

// For the list of a graph's nodes. `numbers` are the parameters that are no pointers, 4 bytes each if they have no more than that.
static std::string describe(const KernelEntry& k, const Parameters& parameters, uint3 grid, uint3 block, unsigned shared) {
    if (settings.nodes.empty()) return "";
    char text[300];
    snprintf(text, sizeof text, ", \"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"threads\": %u, \"shared\": %u, \"numbers\": [", k.name,
             grid.x, grid.y, grid.z, block.x * block.y * block.z, shared);
    std::string numbers;
    for (int i = 0; i < k.parameters; i++) {
        const char* at = parameters.bytes.data() + parameters.offsets[i];
        bool wide = k.bytes[i] == 8;
        if (k.is_pointer[i] || (k.alignment[i] > 4) != wide) continue;  // a table of pointers
        for (unsigned byte = 0; byte < k.bytes[i]; byte += wide ? 8 : 4)
            numbers += (numbers.empty() ? "" : ", ") +
                       (wide ? std::to_string(*(const uint64_t*)(at + byte)) : std::to_string(*(const int*)(at + byte)));
    }
    return text + numbers + "]";
}

// In how many ways kernels that were launched split the memory of a multiprocessor, as far as they say.
static std::set<int> splits;
EXPORTED size_t stand_in_splits() { return splits.size(); }

API cuLaunchKernel(Function* f, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, void* handle, void** values, void**) {
    LOCKED;
    static uint32_t launches;
    const KernelEntry& k = *f->kernel;
    Stream* s = find_stream(handle);
    if (!s) return INVALID_HANDLE;
    uint3 grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
    if (settings.fail_launch && --settings.fail_launch == 0) return LAUNCH_FAILED;
    splits.insert(f->carveout);
    if (!is_valid(*f, grid, block, shared)) return INVALID_VALUE;
    auto parameters = std::make_shared<Parameters>(k, values);
    if (!pointers_are_valid(k, *parameters)) return ILLEGAL_ADDRESS;
    if (settings.trace)
        fprintf(stderr, "stand-in GPU: launch %s <<<(%u,%u,%u), (%u,%u,%u), %u>>>\n", k.name, grid.x, grid.y, grid.z,
                block.x, block.y, block.z, shared);
    auto work = [=] {
        if (!is_run(k.name)) return SUCCESS;
        std::vector<void*> addresses;
        for (size_t offset : parameters->offsets) addresses.push_back(parameters->bytes.data() + offset);
        addresses.push_back(nullptr);
        if (!f->module->checked) trust_outputs(*f->kernel, *parameters);
        bool done = run(
            {f, addresses.data(), grid, block, shared, ++launches, parameters->bytes.data(), parameters->bytes.size()});
        return done ? SUCCESS : ILLEGAL_ADDRESS;
    };
    return submit(s, work, KERNEL, describe(k, *parameters, grid, block, shared));
}
API cuLaunchCooperativeKernel(Function*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                              void**) {
    return NOT_SUPPORTED;
}
API cuProfilerStart() { return SUCCESS; }
API cuProfilerStop() { return SUCCESS; }

// ---- Names of errors ----------------------------------------------------------------------------------------------

struct ErrorName {
    int code;
    const char *name, *text;
};
static const ErrorName ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {STUB_LIBRARY, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {FILE_NOT_FOUND, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {LOSSY_QUERY, "CUDA_ERROR_LOSSY_QUERY", "the query would lose data of edges"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {SYSTEM_NOT_READY, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {SYSTEM_DRIVER_MISMATCH, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {COMPAT_NOT_SUPPORTED, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
     "forward compatibility was attempted on non supported HW"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture was not initiated in this stream"},
    {CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
};
static const ErrorName* find_error(int code) {
    for (const ErrorName& e : ERRORS)
        if (e.code == code) return &e;
    return nullptr;
}
API cuGetErrorName(int code, const char** name) {
    const ErrorName* e = find_error(code);
    *name = e ? e->name : nullptr;
    return e ? SUCCESS : INVALID_VALUE;
}
API cuGetErrorString(int code, const char** text) {
    const ErrorName* e = find_error(code);
    *text = e ? e->text : nullptr;
    return e ? SUCCESS : INVALID_VALUE;
}
