// An NVRTC (libnvrtc.so.13) that compiles CUDA C++ with g++ into a library for the host. Its "CUBIN" is one line that
// says where the library lies; the stand-in driver loads it.
//   STAND_IN_CHECK=1   instrument every memory access (`stand_in_set_check` while running)
//   STAND_IN_CACHE     where compiled kernels are kept (default: the folder `kernels` beside this library)
//   STAND_IN_CXX       the compiler (default g++)
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

using std::string;
#define EXPORTED extern "C" __attribute__((visibility("default")))

enum Result { SUCCESS = 0, INVALID_INPUT = 3, INVALID_OPTION = 5, COMPILATION = 6, NAME_EXPRESSION_NOT_VALID = 11 };

struct Program {
    string source, name, log, image;
    std::vector<string> name_expressions;
};

static std::atomic<bool> check_mode{false};

// ---- Small tools --------------------------------------------------------------------------------------------------

static string environment(const char* name, const string& otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}

static string read_file(const string& path) {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

static uint64_t hash(const string& text) {  // FNV-1a
    uint64_t h = 14695981039346656037ull;
    for (unsigned char c : text) h = (h ^ c) * 1099511628211ull;
    return h;
}

static bool run_command(const string& command, string& output) {
    FILE* pipe = popen(("{ " + command + "; } 2>&1").c_str(), "r");
    if (!pipe) return false;
    char buffer[4096];
    size_t n;
    while ((n = fread(buffer, 1, sizeof buffer, pipe)) > 0) output.append(buffer, n);
    return pclose(pipe) == 0;
}

static string own_folder() {
    Dl_info info;
    dladdr((void*)own_folder, &info);
    string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

// ---- Rewriting ----------------------------------------------------------------------------------------------------

struct Kernel {
    string name;
    string max_threads = "0";
};

static bool is_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

static size_t word_end(const string& s, size_t i) {
    while (i < s.size() && is_word(s[i])) i++;
    return i;
}

static size_t skip_spaces(const string& s, size_t i) {
    while (i < s.size() && isspace((unsigned char)s[i])) i++;
    return i;
}

static size_t skip_parentheses(const string& s, size_t i) {
    i = s.find('(', i);
    for (int depth = 0; i < s.size(); i++) {
        if (s[i] == '(') depth++;
        if (s[i] == ')' && --depth == 0) return i + 1;
    }
    return i;
}

static void remove_attribute(string& declaration, const string& attribute) {
    size_t at;
    while ((at = declaration.find(attribute)) != string::npos)
        declaration.erase(at, skip_parentheses(declaration, at) - at);
}

// Whether the text that ends here ends with `template <…>` and perhaps `static` or `inline`.
static bool ends_with_template(const string& text) {
    size_t last = text.find_last_not_of(" \t\n");
    while (last != string::npos && is_word(text[last])) {
        size_t begin = last;
        while (begin > 0 && is_word(text[begin - 1])) begin--;
        string word = text.substr(begin, last + 1 - begin);
        if (word != "static" && word != "inline") return false;
        last = begin == 0 ? string::npos : text.find_last_not_of(" \t\n", begin - 1);
    }
    return last != string::npos && text[last] == '>';
}

// The name is the last word before the parameters; attributes come before it.
static Kernel read_kernel_header(const string& in, size_t i) {
    Kernel kernel;
    for (;;) {
        i = skip_spaces(in, i);
        if (i >= in.size() || in[i] == '(') return kernel;
        if (in[i] == '#') {
            i = in.find('\n', i);
        } else if (is_word(in[i])) {
            size_t end = word_end(in, i);
            string word = in.substr(i, end - i);
            i = end;
            if (word == "__launch_bounds__") {
                i = skip_parentheses(in, end);
                string arguments = in.substr(in.find('(', end) + 1, i - in.find('(', end) - 2);
                kernel.max_threads = arguments.substr(0, arguments.find(','));
            } else if (word == "__attribute__" || word == "alignas") {
                i = skip_parentheses(in, end);
            } else {
                kernel.name = word;
            }
        } else {
            i++;
        }
    }
}

// `extern __shared__ alignas(16) T name[];` becomes a pointer to the block's dynamic shared memory.
static string dynamic_shared(string declaration) {
    remove_attribute(declaration, "alignas");
    remove_attribute(declaration, "__attribute__");
    size_t name_end = declaration.find('[');
    while (name_end > 0 && isspace((unsigned char)declaration[name_end - 1])) name_end--;
    size_t name = name_end;
    while (name > 0 && is_word(declaration[name - 1])) name--;
    string type = declaration.substr(0, name);
    return type + "*const " + declaration.substr(name, name_end - name) + " = (" + type +
           "*)stand_in::header()->block->dynamic_shared";
}

// Works on preprocessed text, where __global__, __shared__ and __launch_bounds__ are still plain words.
static string rewrite(const string& in, std::vector<Kernel>& kernels) {
    string out;
    out.reserve(in.size() + 4096);
    std::set<string> seen;
    for (size_t i = 0; i < in.size();) {
        char c = in[i];
        if (c == '"' || c == '\'') {  // literals stay as they are
            size_t end = i + 1;
            while (end < in.size() && in[end] != c) end += in[end] == '\\' ? 2 : 1;
            out.append(in, i, end + 1 - i);
            i = end + 1;
            continue;
        }
        if (!is_word(c)) {
            out += c;
            i++;
            continue;
        }
        size_t end = word_end(in, i);
        string word = in.substr(i, end - i);
        i = end;
        size_t next = skip_spaces(in, end);
        if (word == "__global__") {
            Kernel kernel = read_kernel_header(in, end);
            bool new_name = !ends_with_template(out) && !kernel.name.empty() && seen.insert(kernel.name).second;
            if (new_name) kernels.push_back(kernel);
        } else if (word == "__launch_bounds__") {
            i = skip_parentheses(in, end);
        } else if (word == "extern" && in.compare(next, 10, "__shared__") == 0) {
            i = in.find(';', next);
            out += dynamic_shared(in.substr(next + 10, i - next - 10));
        } else if (word == "__shared__") {
            // One copy per host thread, and a block runs on one host thread.
            size_t last = out.find_last_not_of(" \t\n");
            bool is_static = last != string::npos && last >= 5 && out.compare(last - 5, 6, "static") == 0;
            out += is_static ? "thread_local" : "static thread_local";
            if (in.compare(next, 7, "alignas") == 0) {  // g++ wants a standard attribute in front of the declaration
                i = skip_parentheses(in, next);
                out += " __attribute__((aligned" + in.substr(next + 7, i - next - 7) + "))";
            }
        } else {
            out += word;
        }
    }
    return out;
}

// The table of kernels, and what connects the library with the runtime.
static string glue(const std::vector<Kernel>& kernels, const std::vector<string>& name_expressions, bool check) {
    const string exported = "extern \"C\" __attribute__((visibility(\"default\"))) ";
    string text = "\n# 1 \"stand-in glue\"\n" + exported + "const stand_in::KernelEntry stand_in_kernels[] = {\n";
    auto add = [&](const string& name, const string& function, const string& max_threads) {
        string type = "stand_in::Signature<decltype(&" + function + ")>";
        text += "{\"" + name + "\", &" + type + "::call<&" + function + ">, (int)(" + max_threads + "), " + type +
                "::count, " + type + "::bytes, " + type + "::alignment, " + type + "::is_pointer},\n";
    };
    for (const Kernel& k : kernels) add(k.name, k.name, k.max_threads);
    for (const string& e : name_expressions) add(e, e[0] == '&' ? e.substr(1) : e, "0");
    text += "{0, 0, 0, 0, 0, 0, 0}};\n" + exported +
            "__attribute__((no_sanitize(\"thread\"))) void stand_in_connect(const stand_in::RuntimeCalls* calls) "
            "{ stand_in::runtime = calls; }\n";
    if (check) text += exported + "int stand_in_checked;\nint stand_in_checked = 1;\n";
    return text;
}

// ---- Options ------------------------------------------------------------------------------------------------------

struct Options {
    string preprocess, compile, standard = "-std=c++17";
};

static bool starts_with(const string& text, const string& prefix) {
    return text.compare(0, prefix.size(), prefix) == 0;
}

static bool read_options(int count, const char* const* given, Options& options, string& log) {
    static const char* const WITHOUT_EFFECT[] = {"--ptxas-options=",
                                                 "--maxrregcount=",
                                                 "-maxrregcount=",
                                                 "--use_fast_math",
                                                 "-use_fast_math",
                                                 "--fmad=true",
                                                 "-lineinfo",
                                                 "--generate-line-info",
                                                 "--ftz=",
                                                 "--prec-div=",
                                                 "--prec-sqrt=",
                                                 "--extra-device-vectorization",
                                                 "-default-device",
                                                 "--default-device",
                                                 "-w",
                                                 "--disable-warnings",
                                                 "--device-debug",
                                                 "-G",
                                                 "--restrict",
                                                 "--Werror",
                                                 "-Werror",
                                                 "--split-compile=",
                                                 "--diag-suppress="};
    for (int i = 0; i < count; i++) {
        string option = given[i];
        string value = option.substr(std::min(option.size(), option.find('=') + 1));
        bool known = false;
        for (const char* prefix : WITHOUT_EFFECT) known |= starts_with(option, prefix);
        if (known) continue;
        if (starts_with(option, "--include-path="))
            options.preprocess += " -I'" + value + "'";
        else if (starts_with(option, "--define-macro="))
            options.preprocess += " -D'" + value + "'";
        else if (option.size() > 2 &&
                 (starts_with(option, "-I") || starts_with(option, "-D") || starts_with(option, "-U")))
            options.preprocess += " '" + option + "'";
        else if (starts_with(option, "--std=") || starts_with(option, "-std="))
            options.standard = "-std=" + value;
        else if (option == "--fmad=false" || option == "-fmad=false")
            options.compile += " -ffp-contract=off";
        else if (starts_with(option, "--gpu-architecture=") || starts_with(option, "-arch=")) {
            size_t digit = value.find_first_of("0123456789");
            int capability = digit == string::npos ? 0 : atoi(value.c_str() + digit);
            if (capability < 75) {  // as NVRTC 13
                log += "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
                return false;
            }
            options.preprocess += " -D__CUDA_ARCH__=" + std::to_string(10 * capability);
        } else {
            log += "nvrtc: error: unrecognized option " + option + " found\n";
            return false;
        }
    }
    return true;
}

// ---- Compilation --------------------------------------------------------------------------------------------------

static Result compile(Program& program, int option_count, const char* const* given) {
    static std::atomic<unsigned> compilations{0};
    static const string CHECKED =
        " -O1 -DSTAND_IN_CHECK -fsanitize=thread,alignment,bounds,signed-integer-overflow,integer-divide-by-zero"
        " -fsanitize-undefined-trap-on-error --param tsan-instrument-func-entry-exit=0";
    program.log.clear();
    Options options;
    if (!read_options(option_count, given, options, program.log)) return INVALID_OPTION;
    bool check = check_mode;
    string folder = own_folder(), shim = folder + "/cuda_on_host.h", compiler = environment("STAND_IN_CXX", "g++");
    string flags = " -g1 -fPIC -march=x86-64-v3 -fno-strict-aliasing -fno-exceptions -fvisibility=hidden -w" +
                   options.compile + (check ? CHECKED : " -O2");

    string cache = environment("STAND_IN_CACHE", folder + "/kernels");
    mkdir(cache.c_str(), 0755);
    string key = program.source + compiler + options.preprocess + options.standard + flags + read_file(shim) +
                 read_file(folder + "/interface.h");
    for (const string& e : program.name_expressions) key += "\n" + e;
    char digits[17];
    snprintf(digits, sizeof digits, "%016llx", (unsigned long long)hash(key));
    string library = cache + "/" + digits + ".so";
    program.image = "//stand-in-module:" + library + "\n" + folder + "\n";
    struct stat existing;
    if (stat(library.c_str(), &existing) == 0) return SUCCESS;

    // Each compilation works on files of its own; the last step, a rename, makes the result visible.
    string work = cache + "/" + digits + "." + std::to_string(getpid()) + "." + std::to_string(compilations++);
    string source = work + ".cu", preprocessed = work + ".ii", object = work + ".o", linked = work + ".tmp.so";
    std::ofstream(source) << "#line 1 \"" << program.name << "\"\n" << program.source;
    string define = check ? " -DSTAND_IN_CHECK" : "";
    bool done = run_command(compiler + " -E " + options.standard + define + options.preprocess + " -include '" + shim +
                                "' -x c++ '" + source + "' -o '" + preprocessed + "'",
                            program.log);
    if (done) {
        std::vector<Kernel> kernels;
        string text = rewrite(read_file(preprocessed), kernels);
        text += glue(kernels, program.name_expressions, check);
        std::ofstream(preprocessed) << text;
        done = run_command(compiler + " " + options.standard + flags +
                               " -fdebug-prefix-map=\"$PWD\"=. -c -fpreprocessed -x c++ '" + preprocessed + "' -o '" +
                               object + "' && " + compiler + " -shared -o '" + linked + "' '" + object + "'",
                           program.log);
    }
    if (done) done = rename(linked.c_str(), library.c_str()) == 0;
    for (const string& file : {source, preprocessed, object}) unlink(file.c_str());
    return done ? SUCCESS : COMPILATION;
}

// ---- The API ------------------------------------------------------------------------------------------------------

#define API EXPORTED Result

API nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}
API nvrtcGetNumSupportedArchs(int* count) {
    *count = 3;
    return SUCCESS;
}
API nvrtcGetSupportedArchs(int* architectures) {
    architectures[0] = 75;
    architectures[1] = 80;
    architectures[2] = 90;
    return SUCCESS;
}
EXPORTED const char* nvrtcGetErrorString(Result r) {
    switch (r) {
        case SUCCESS: return "NVRTC_SUCCESS";
        case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
        case COMPILATION: return "NVRTC_ERROR_COMPILATION";
        case NAME_EXPRESSION_NOT_VALID: return "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID";
        default: return "NVRTC_ERROR_INVALID_INPUT";
    }
}
API nvrtcCreateProgram(Program** program, const char* source, const char* name, int headers, const char* const*,
                       const char* const*) {
    if (headers) return INVALID_INPUT;
    *program = new Program{source, name ? name : "default_program", "", "", {}};
    return SUCCESS;
}
API nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return SUCCESS;
}
API nvrtcAddNameExpression(Program* program, const char* expression) {
    program->name_expressions.push_back(expression);
    return SUCCESS;
}
API nvrtcGetLoweredName(Program* program, const char* expression, const char** name) {
    for (const string& e : program->name_expressions) {
        if (e != expression) continue;
        *name = e.c_str();
        return SUCCESS;
    }
    return NAME_EXPRESSION_NOT_VALID;
}
API nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    return compile(*program, count, options);
}
API nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    *bytes = program->log.size() + 1;
    return SUCCESS;
}
API nvrtcGetProgramLog(Program* program, char* log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}
API nvrtcGetPTXSize(Program* program, size_t* bytes) {
    *bytes = program->image.size() + 1;
    return SUCCESS;
}
API nvrtcGetPTX(Program* program, char* image) {
    memcpy(image, program->image.c_str(), program->image.size() + 1);
    return SUCCESS;
}
API nvrtcGetCUBINSize(Program* program, size_t* bytes) { return nvrtcGetPTXSize(program, bytes); }
API nvrtcGetCUBIN(Program* program, char* image) { return nvrtcGetPTX(program, image); }

EXPORTED void stand_in_set_check(int on) { check_mode = on; }

// Before anything else is called.
__attribute__((constructor)) static void read_environment() { check_mode = environment("STAND_IN_CHECK", "0") != "0"; }
