"""The rules of lib/ that its includes and calls show. Python 3 alone.

test_includes.py LIB    checks the checker on small trees with one violation each, then LIB

1. A file includes from its own room and from the rooms that ROOMS names for it, which are below.
2. Modules (X.h and X.c of one folder) include one another in no circle.
3. The operating system is behind base/os.h: only base/os_*.c include its headers and call it.
4. No line of a source has more than 120 characters; that goes for the folders beside LIB too.
"""

import re
import sys
import tempfile
import unittest
from pathlib import Path

# Lowest first: each room with the rooms that it may include from.
ROOMS = {
    "base": "",
    "kernels": "base",
    "cache": "base kernels",
    "template": "base",
    "tokenizer": "base template",
    "sampling": "base",
    "formats": "base kernels tokenizer",
    "config": "base formats",
    "weights": "base kernels formats config",
    "forward": "base kernels cache config weights",
    "model": "base kernels cache tokenizer formats config weights forward",
    "snapshot": "base kernels cache tokenizer sampling formats config weights forward model",
    "session": "base cache sampling forward model snapshot",
    "api": "base kernels cache tokenizer sampling formats config weights forward model snapshot session",
}

WIDTH = 120  # characters

C11 = {f"{name}.h" for name in """
    assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg stdatomic
    stdbool stddef stdint stdio stdlib stdnoreturn string tgmath time uchar wchar wctype
    """.split()}  # not threads.h, which macOS and Windows lack
DEPENDENCIES = {"jansson.h", "pcre2.h", "xxhash.h", "zstd.h"}
INTRINSICS = {"arm_neon.h", "cpuid.h", "immintrin.h"}  # in kernels/

# Files; memory; processes, threads, processors and time; what glibc alone has, or has otherwise than others.
CALLS = r"""
    access chdir chmod close closedir creat dup2? fchmod fclose fcntl fdatasync fdopen fflush fgetc fgets fileno
    flock fopen fprintf fputs fread freopen fscanf fseeko? fstat fstatat fsync ftello? ftruncate fwrite getcwd
    ioctl link lockf lseek lstat mkdir mkdtemp mkostemp mkstemp open openat opendir perror pipe2? poll pread
    printf puts pwrite read readdir readlink readv realpath remove rename renameat rmdir select stat sync
    tmpfile tmpnam truncate umask unlink write writev

    aligned_alloc madvise memalign mincore mlock mmap mprotect mremap msync munmap posix_fadvise posix_fallocate
    posix_madvise posix_memalign sbrk shm_open valloc

    _exit atexit clock clock_gettime exec\w+ fork getauxval getenv geteuid getpid getrlimit getrusage gettid
    gettimeofday getuid gmtime kill localtime nanosleep pthread_\w+ raise sched_\w+ secure_getenv sem_\w+ setenv
    setlocale sigaction signal sigprocmask sleep syscall sysconf sysinfo system time timespec_get usleep waitpid
    thrd_\w+ mtx_\w+ cnd_\w+ tss_\w+ call_once

    asprintf basename getline getrandom memmem mempcpy memrchr qsort_r rand random rawmemchr srand
    strcasestr strchrnul strdup strdupa strerror\w* strndup strsep strtok vasprintf
    """
SYSTEM_CALLS = re.compile(r"(?<![\w.])(?<!->)(?:" + "|".join(CALLS.split()) + r")\s*\(")
ERRNO = re.compile(r"\berrno\b")

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:<([^>]*)>|"([^"]*)")', re.MULTILINE)
COMMENT_OR_LITERAL = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|' r"'(?:\\.|[^'\\\n])*'", re.DOTALL)


def blank(text, literals):
    """The text without comments, and without strings and characters if `literals`; lines keep their numbers."""
    def replace(match):
        found = match.group()
        keep = found[0] in "\"'" and not literals
        return found if keep else " " + "\n" * found.count("\n")
    return COMMENT_OR_LITERAL.sub(replace, text)


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def is_system_file(name):
    return re.fullmatch(r"base/os_\w+\.c", name) is not None


def check_own_include(lib, name, target):
    """What is wrong with an include of a file of lib/, or None."""
    if not (lib / target).is_file():
        return f'includes "{target}", which is no path from lib/ on'
    room, other = name.split("/")[0], target.split("/")[0]
    if other != room and other not in ROOMS.get(room, "").split():
        return f'includes "{target}": {room}/ may not include from {other}/'
    return None


def check_system_include(name, target):
    if target.startswith("dsv2/") or target in C11 | DEPENDENCIES or is_system_file(name):
        return None
    if target in INTRINSICS and name.startswith("kernels/"):
        return None
    return f"includes <{target}>"


def check_calls(name, text):
    """Problems, each with its line."""
    code = blank(text, literals=True)
    found = [(match.start(), f"calls {match.group()[:-1].strip()}") for match in SYSTEM_CALLS.finditer(code)]
    found += [(match.start(), "uses errno") for match in ERRNO.finditer(code)]
    return [f"{name}:{line_of(code, at)}: {what}: ask base/os.h" for at, what in sorted(found)]


def find_circles(graph):
    """Each way back to a module from which it was reached: "a -> b -> a"."""
    circles, done, path = [], set(), []

    def visit(node):
        if node in path:
            circles.append(" -> ".join(path[path.index(node):] + [node]))
        elif node not in done:
            path.append(node)
            for target in sorted(graph.get(node, ())):
                visit(target)
            path.pop()
            done.add(node)

    for node in sorted(graph):
        visit(node)
    return circles


def check_width(folder, suffixes=(".c", ".h", ".hpp", ".cpp", ".def")):
    problems = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in suffixes):
        for n, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if len(line) > WIDTH:
                problems.append(f"{path.relative_to(folder).as_posix()}:{n}: has {len(line)} characters, over {WIDTH}")
    return problems


def check(lib):
    """All problems of a tree, as lines."""
    problems, graph = [], {}
    files = sorted(path for path in lib.rglob("*") if path.suffix in (".c", ".h"))
    if not files:
        return [f"{lib}: no source"]
    for path in files:
        name = path.relative_to(lib).as_posix()
        text = path.read_text(encoding="utf-8")
        module = name.rsplit(".", 1)[0]
        if name.split("/")[0] not in ROOMS:
            problems.append(f"{name}: in no room that this test knows")
        code = blank(text, literals=False)
        for match in INCLUDE.finditer(code):
            system, own = match.groups()
            problem = check_own_include(lib, name, own) if own is not None else check_system_include(name, system)
            if problem is not None:
                problems.append(f"{name}:{line_of(code, match.start())}: {problem}")
            elif own is not None and own.rsplit(".", 1)[0] != module:
                graph.setdefault(module, set()).add(own.rsplit(".", 1)[0])
        if not is_system_file(name):
            problems += check_calls(name, text)
    problems += check_width(lib)
    return problems + [f"includes in a circle: {circle}" for circle in find_circles(graph)]


# ---- the checker, checked ----

SOUND = {
    "base/base.h": '#include "base/os.h"\n#include <dsv2/model.h>\n#include <stdint.h>\n',
    "base/os.h": "#include <stddef.h>\n",
    "base/os_posix.c": '#include "base/os.h"\n#include <pthread.h>\nint f(void) { return errno + open("a", 0); }\n',
    "base/json.c": '#include "base/base.h"\n#include <jansson.h>\n',
    "kernels/x86/avx2.c": '#include "base/base.h"\n#include <immintrin.h>\n',
    "cache/cache.h": '#include "base/base.h"\n',
    "cache/cache.c": '#include "cache/cache.h"\n'
    "/* open( nothing, read(2) */ // close()\n"
    'int h(void) { return ds_os_open(r->read(s), s.write (1), "mmap(", errno_of, \'"\', reopen(1), "\\"getenv("); }\n',
    "model/model.h": '#include "cache/cache.h"\n',
}


class Checker(unittest.TestCase):
    def report(self, changes):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**SOUND, **changes}.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            return check(Path(folder))

    def expect(self, changes, *reports):
        self.assertEqual(self.report(changes), list(reports))

    def test_a_sound_tree_has_no_problem(self):
        self.expect({})

    def test_a_tree_without_sources_is_a_problem(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(check(Path(folder)), [f"{folder}: no source"])

    def test_rooms_name_only_rooms_below(self):
        rooms = list(ROOMS)
        for i, room in enumerate(rooms):
            self.assertLessEqual(set(ROOMS[room].split()), set(rooms[:i]), room)

    def test_a_long_line_is_found_by_its_characters(self):
        self.expect({"cache/wide.h": "\n/* " + "ü" * 115 + " */\n"}, "cache/wide.h:2: has 121 characters, over 120")
        self.expect({"cache/wide.h": "\n/* " + "ü" * 114 + " */\n"})

    def test_an_include_from_above_is_found(self):
        self.expect({"cache/upward.c": '\n#include "model/model.h"\n'},
                    'cache/upward.c:2: includes "model/model.h": cache/ may not include from model/')

    def test_an_include_from_beside_is_found(self):
        self.expect({"sampling/sampling.c": '#include "cache/cache.h"\n'},
                    'sampling/sampling.c:1: includes "cache/cache.h": sampling/ may not include from cache/')

    def test_an_include_that_hides_its_room_is_found(self):
        for target in ("cache.h", "../cache/cache.h", "cache/absent.h"):
            self.expect({"model/a.c": f'#include "{target}"\n'},
                        f'model/a.c:1: includes "{target}", which is no path from lib/ on')

    def test_an_unknown_room_is_found(self):
        self.expect({"attic/a.c": "\n"}, "attic/a.c: in no room that this test knows")

    def test_a_circle_of_headers_is_found(self):
        self.expect({"model/a.h": '#include "model/b.h"\n', "model/b.h": '#include "model/c.h"\n',
                     "model/c.h": '#include "model/a.h"\n'},
                    "includes in a circle: model/a -> model/b -> model/c -> model/a")

    def test_a_circle_through_a_source_is_found(self):
        self.expect({"model/a.h": "\n", "model/a.c": '#include "model/a.h"\n#include "model/b.h"\n', "model/b.h": "\n",
                     "model/b.c": '#include "model/b.h"\n#include "model/a.h"\n'},
                    "includes in a circle: model/a -> model/b -> model/a")

    def test_system_headers_are_found(self):
        headers = ["dirent.h", "fcntl.h", "immintrin.h", "pthread.h", "sys/mman.h", "threads.h", "unistd.h"]
        self.expect({"cache/a.c": "".join(f"#include <{header}>\n" for header in headers)},
                    *(f"cache/a.c:{i}: includes <{header}>" for i, header in enumerate(headers, 1)))

    def test_system_calls_are_found(self):
        calls = """fopen open close read write getenv clock_gettime time pthread_mutex_lock sched_yield mmap madvise
            strerror strerror_r qsort_r memmem mkostemp flock fsync mtx_lock""".split()
        self.expect({"cache/a.c": "".join(f"int f{i}(void) {{ return {call} (1); }}\n" for i, call in enumerate(calls))},
                    *(f"cache/a.c:{i}: calls {call}: ask base/os.h" for i, call in enumerate(calls, 1)))

    def test_a_call_in_a_macro_is_found(self):
        self.expect({"cache/a.h": "#define A(x) open(x)\n"}, "cache/a.h:1: calls open: ask base/os.h")

    def test_errno_is_found(self):
        self.expect({"cache/a.c": "int e(void) { return errno; }\n"}, "cache/a.c:1: uses errno: ask base/os.h")


def main():
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(Checker)
    sound = unittest.TextTestRunner(stream=sys.stdout).run(tests).wasSuccessful()
    lib = Path(sys.argv[1])
    problems = check(lib)
    for beside in ("include", "tests", "examples"):
        problems += [f"../{beside}/{problem}" for problem in check_width(lib.parent / beside)]
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems in {lib} and beside it")
    return 0 if sound and not problems else 1


if __name__ == "__main__":
    sys.exit(main())
