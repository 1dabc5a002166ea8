// Stands in for the NVIDIA driver, libcuda.so.1: memory is the host's, a "cubin" is the path of a kernel file's shim,
// streams run what they are given at once, graphs run it later. It is strict where the real driver is: the context must
// be current, nothing but queued work may come into a capture, handles must be alive. So cuda_device.py runs to the
// last driver call without a GPU, NVIDIA's own binding included.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900 };

struct Graph { std::vector<std::function<int()>> work; };
struct Stream { bool capturing = false; Graph graph; };
struct Event { int n_record = 0; };
struct Module { void* library; };
struct Function {
    void (*run)(const unsigned*, const unsigned*, size_t, void**, int);
    std::vector<int> sizes;
    int shared = 48 * 1024;
};
struct Props { int type, handle_types; struct { int type, id; } location; };

std::vector<void*> contexts;  // a stack, of the one thread of the tests
std::map<uintptr_t, size_t> blocks;
std::set<void*> alive;
size_t used = 0, total = 1 << 30;
int lost = 0;
int primary;  // its address is the handle

bool is_default(void* stream) { return (uintptr_t)stream <= 2; }

int enter(void* stream = nullptr, bool queued = false) {
    if (lost) return lost;
    if (contexts.empty()) return INVALID_CONTEXT;
    if (!is_default(stream)) {
        if (!alive.count(stream)) return INVALID_HANDLE;
        if (static_cast<Stream*>(stream)->capturing && !queued) return CAPTURE_UNSUPPORTED;
    }
    return SUCCESS;
}

int queue(void* stream, std::function<int()> work) {
    if (int code = enter(stream, true)) return code;
    if (!is_default(stream) && static_cast<Stream*>(stream)->capturing) {
        static_cast<Stream*>(stream)->graph.work.push_back(std::move(work));
        return SUCCESS;
    }
    return lost = work();
}

bool inside(uintptr_t start, size_t n) {
    auto block = blocks.upper_bound(start);
    return block != blocks.begin() && (--block, start + n <= block->first + block->second);
}

template <typename T> T* make() {
    auto* made = new T();
    alive.insert(made);
    return made;
}

template <typename T> int destroy(void* handle) {
    if (int code = enter()) return code;
    if (!alive.erase(handle)) return INVALID_HANDLE;
    delete static_cast<T*>(handle);
    return SUCCESS;
}

int allocate(uintptr_t* out, size_t n) {
    if (!n) return INVALID_VALUE;
    if (used + n > total) return OUT_OF_MEMORY;
    *out = reinterpret_cast<uintptr_t>(std::aligned_alloc(256, (n + 255) / 256 * 256));
    std::memset(reinterpret_cast<void*>(*out), 0xff, n);
    blocks[*out] = n;
    used += n;
    return SUCCESS;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return std::getenv("FAKE_NO_DEVICE") ? 100 : SUCCESS; }
int cuDriverGetVersion(int* out) { return *out = 13000, SUCCESS; }
int cuGetErrorName(int code, const char** out) {
    static const std::map<int, const char*> names = {{2, "CUDA_ERROR_OUT_OF_MEMORY"}, {100, "CUDA_ERROR_NO_DEVICE"},
                                                     {500, "CUDA_ERROR_NOT_FOUND"},
                                                     {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}};
    *out = names.count(code) ? names.at(code) : "CUDA_ERROR_OF_THE_STAND_IN";
    return SUCCESS;
}
int cuGetErrorString(int, const char** out) { return *out = "said by the stand-in", SUCCESS; }
int cuDeviceGetCount(int* out) { return *out = 1, SUCCESS; }
int cuDeviceGet(int* out, int ordinal) { return *out = ordinal, SUCCESS; }
int cuDeviceGetName(char* out, int length, int) { return std::strncpy(out, "Stand-in", length), SUCCESS; }
int cuDeviceGetAttribute(int* out, int attribute, int) {
    const char* major = std::getenv("FAKE_MAJOR");
    *out = attribute == 75 ? (major ? std::atoi(major) : 9) : attribute == 97 ? 227 * 1024 : attribute == 115 ? 1 : 0;
    return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** out, int) { return *out = &primary, SUCCESS; }
int cuDevicePrimaryCtxRelease(int) { return SUCCESS; }
int cuCtxPushCurrent(void* context) { return contexts.push_back(context), lost; }
int cuCtxPopCurrent(void** out) {
    if (contexts.empty()) return INVALID_CONTEXT;
    *out = contexts.back();
    contexts.pop_back();
    return lost;
}
int cuCtxGetCurrent(void** out) { return *out = contexts.empty() ? nullptr : contexts.back(), SUCCESS; }
int cuCtxGetDevice(int* out) { return *out = 0, enter(); }
int cuStreamGetCtx(void* stream, void** out) {
    if (!alive.count(stream)) return INVALID_HANDLE;
    return *out = &primary, SUCCESS;
}
int cuStreamCreate(void** out, unsigned) {
    if (int code = enter()) return code;
    return *out = make<Stream>(), SUCCESS;
}
int cuStreamDestroy(void* stream) { return destroy<Stream>(stream); }
int cuStreamSynchronize(void* stream) { return enter(stream); }
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    if (int code = enter(stream)) return code;
    return alive.count(event) ? SUCCESS : INVALID_HANDLE;
}
int cuEventCreate(void** out, unsigned) {
    if (int code = enter()) return code;
    return *out = make<Event>(), SUCCESS;
}
int cuEventDestroy(void* event) { return destroy<Event>(event); }
int cuEventRecord(void* event, void* stream) {
    if (int code = enter(stream)) return code;
    if (!alive.count(event)) return INVALID_HANDLE;
    return ++static_cast<Event*>(event)->n_record, SUCCESS;
}
int cuEventSynchronize(void* event) {
    if (int code = enter()) return code;
    return alive.count(event) ? SUCCESS : INVALID_HANDLE;
}
int cuMemPoolCreate(void** out, const Props* props) {
    if (int code = enter()) return code;
    if (props->type != 1 || props->location.type != 1 || props->location.id != 0) return INVALID_VALUE;
    return *out = make<int>(), SUCCESS;
}
int cuMemPoolSetAttribute(void* pool, int attribute, void* value) {
    if (!alive.count(pool) || attribute != 4 || *static_cast<uint64_t*>(value) != UINT64_MAX) return INVALID_VALUE;
    return SUCCESS;
}
int cuMemPoolTrimTo(void* pool, size_t) { return alive.count(pool) ? SUCCESS : INVALID_HANDLE; }
int cuMemPoolDestroy(void* pool) { return destroy<int>(pool); }
int cuMemAllocFromPoolAsync(uintptr_t* out, size_t n, void* pool, void* stream) {
    if (int code = enter(stream)) return code;
    return alive.count(pool) ? allocate(out, n) : INVALID_HANDLE;
}
int cuMemFreeAsync(uintptr_t pointer, void* stream) {
    if (int code = enter(stream)) return code;
    auto block = blocks.find(pointer);
    if (block == blocks.end()) return INVALID_VALUE;
    used -= block->second;
    std::memset(reinterpret_cast<void*>(pointer), 0xff, block->second);  // whoever reads it still gets NaNs
    std::free(reinterpret_cast<void*>(pointer));
    blocks.erase(block);
    return SUCCESS;
}
int cuMemGetInfo(size_t* free, size_t* all) { return *free = total - used, *all = total, enter(); }
int cuMemHostAlloc(void** out, size_t n, unsigned) {
    if (int code = enter()) return code;
    return *out = std::malloc(n), SUCCESS;
}
int cuMemFreeHost(void* pointer) { return std::free(pointer), enter(); }
int cuMemcpyHtoDAsync(uintptr_t target, const void* source, size_t n, void* stream) {
    return queue(stream, [=] {
        if (!inside(target, n)) return (int)ILLEGAL_ADDRESS;
        return std::memcpy(reinterpret_cast<void*>(target), source, n), (int)SUCCESS;
    });
}
int cuMemcpyDtoHAsync(void* target, uintptr_t source, size_t n, void* stream) {
    return queue(stream, [=] {
        if (!inside(source, n)) return (int)ILLEGAL_ADDRESS;
        return std::memcpy(target, reinterpret_cast<void*>(source), n), (int)SUCCESS;
    });
}
int cuMemcpyDtoDAsync(uintptr_t target, uintptr_t source, size_t n, void* stream) {
    return queue(stream, [=] {
        if (!inside(source, n) || !inside(target, n)) return (int)ILLEGAL_ADDRESS;
        return std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), n), (int)SUCCESS;
    });
}
int cuMemsetD8Async(uintptr_t target, unsigned char value, size_t n, void* stream) {
    if (!n) return INVALID_VALUE;
    return queue(stream, [=] {
        if (!inside(target, n)) return (int)ILLEGAL_ADDRESS;
        return std::memset(reinterpret_cast<void*>(target), value, n), (int)SUCCESS;
    });
}
int cuPointerGetAttribute(void* out, int attribute, uintptr_t pointer) {
    if (attribute != 9 || !inside(pointer, 1)) return INVALID_VALUE;
    return *static_cast<int*>(out) = 0, SUCCESS;
}
int cuModuleLoadData(void** out, const void* image) {
    if (int code = enter()) return code;
    void* library = dlopen(static_cast<const char*>(image), RTLD_NOW | RTLD_LOCAL);
    if (!library) return INVALID_IMAGE;
    auto* module = make<Module>();
    module->library = library;
    return *out = module, SUCCESS;
}
int cuModuleUnload(void* module) { return destroy<Module>(module); }
int cuModuleGetFunction(void** out, void* module, const char* name) {
    if (int code = enter()) return code;
    void* library = static_cast<Module*>(module)->library;
    void* run = dlsym(library, (std::string("run_") + name).c_str());
    auto signature = reinterpret_cast<int (*)(int*, int)>(dlsym(library, (std::string("signature_") + name).c_str()));
    if (!run || !signature) return NOT_FOUND;
    auto* function = make<Function>();
    function->run = reinterpret_cast<decltype(function->run)>(run);
    function->sizes.resize(64);
    function->sizes.resize(signature(function->sizes.data(), 64));
    for (int& size : function->sizes) size %= 256;
    return *out = function, SUCCESS;
}
int cuFuncGetAttribute(int* out, int attribute, void*) { return *out = attribute == 4 ? 32 : 0, enter(); }
int cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute != 8 || value > 227 * 1024) return INVALID_VALUE;
    return static_cast<Function*>(function)->shared = value, enter();
}
int cuFuncGetParamInfo(void* function, size_t i, size_t* offset, size_t* size) {
    auto& sizes = static_cast<Function*>(function)->sizes;
    if (i >= sizes.size()) return INVALID_VALUE;
    *offset = 0;
    *size = sizes[i];
    return SUCCESS;
}
int cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void**) {
    auto* function = static_cast<Function*>(handle);
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || (int)shared > function->shared) return INVALID_VALUE;
    std::vector<uint64_t> values(function->sizes.size());  // copied when queued, as by the real one
    for (size_t i = 0; i < values.size(); ++i) std::memcpy(&values[i], arguments[i], function->sizes[i]);
    return queue(stream, [=]() mutable {
        std::vector<void*> pointers;
        for (auto& value : values) pointers.push_back(&value);
        const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
        function->run(grid, block, shared, pointers.data(), (int)pointers.size());
        return (int)SUCCESS;
    });
}
int cuStreamBeginCapture(void* stream, int mode) {
    if (int code = enter(stream)) return code;
    if (is_default(stream) || mode != 1) return CAPTURE_UNSUPPORTED;
    static_cast<Stream*>(stream)->capturing = true;
    return SUCCESS;
}
int cuStreamEndCapture(void* stream, void** out) {
    auto* captured = static_cast<Stream*>(stream);
    if (!captured->capturing) return INVALID_VALUE;
    captured->capturing = false;
    auto* graph = make<Graph>();
    std::swap(graph->work, captured->graph.work);
    return *out = graph, SUCCESS;
}
int cuGraphInstantiateWithFlags(void** out, void* graph, unsigned long long) {
    if (int code = enter()) return code;
    auto* executable = make<Graph>();
    executable->work = static_cast<Graph*>(graph)->work;
    return *out = executable, SUCCESS;
}
int cuGraphDestroy(void* graph) { return destroy<Graph>(graph); }
int cuGraphExecDestroy(void* graph) { return destroy<Graph>(graph); }
int cuGraphLaunch(void* graph, void* stream) {
    if (!alive.count(graph)) return INVALID_HANDLE;
    for (auto& work : static_cast<Graph*>(graph)->work)
        if (int code = queue(stream, work)) return code;
    return SUCCESS;
}

int cuGetProcAddress_v2(const char* name, void** out, int, uint64_t, int* status) {
    Dl_info here;
    dladdr(reinterpret_cast<void*>(&cuInit), &here);
    void* self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *out = std::strncmp(name, "cu", 2) ? nullptr : dlsym(self, name);
    if (*out && status) *status = 0;
    if (!*out && status) *status = 1;
    return *out ? SUCCESS : NOT_FOUND;
}
int cuGetProcAddress(const char* name, void** out, int version, uint64_t flags, int* status) {
    return cuGetProcAddress_v2(name, out, version, flags, status);
}

}  // extern "C"
