/* The executable of the self-contained directory: a Python interpreter that runs fuseunion.
 *
 * It is CPython's own main program with another main(), so the directory holds one interpreter, statically linked, and
 * starts with one exec(2). It finds its directory by /proc/self/exe, so the directory may be moved and linked to:
 *
 *     ROOT/bin/fuseunion               this
 *     ROOT/lib/python3 -> it           called by this name it is a plain interpreter; what sys.executable says
 *     ROOT/lib/pythonX.Y/              the library, with bytecode, and site-packages
 *
 * As fuseunion it reads neither the environment of Python (PYTHONPATH and the like) nor site-packages of the user, and
 * sys.argv is as the caller gave it: the name under which the program was called tells what is meant.
 */

#include "Python.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char COMMAND[] =
    "import sys\n"
    "from fuseunion.__main__ import main\n"
    "sys.exit(main())\n";

/* Print one line as fuseunion does; returns its exit status for what is not available. */
static int refuse(const char *why)
{
    fprintf(stderr, "fuseunion: %s\n", why);
    return 5;
}

/* Write the directory above bin/ to root; returns -1 where it cannot be known. */
static int find_root(char *root, size_t size)
{
    ssize_t length = readlink("/proc/self/exe", root, size - 1);

    if (length <= 0)
        return -1;
    root[length] = '\0';
    for (int levels = 0; levels < 2; levels++) {
        char *slash = strrchr(root, '/');

        if (slash == NULL)
            return -1;
        *slash = '\0';
    }
    return 0;
}

static PyStatus append_path(PyConfig *config, const char *format, const char *root)
{
    char path[PATH_MAX + 64];
    wchar_t *wide;
    PyStatus status;

    snprintf(path, sizeof path, format, root, PY_MAJOR_VERSION, PY_MINOR_VERSION);
    wide = Py_DecodeLocale(path, NULL);
    if (wide == NULL)
        return PyStatus_NoMemory();
    status = PyWideStringList_Append(&config->module_search_paths, wide);
    PyMem_RawFree(wide);
    return status;
}

static PyStatus configure(PyConfig *config, int argc, char **argv, const char *root)
{
    char executable[PATH_MAX + 64];
    PyStatus status;

    snprintf(executable, sizeof executable, "%s/lib/python3", root);
    config->install_signal_handlers = 1;
    config->parse_argv = 0;
    config->write_bytecode = 0;
    config->site_import = 0;
    config->module_search_paths_set = 1;
    status = PyConfig_SetBytesArgv(config, argc, argv);
    if (PyStatus_Exception(status))
        return status;
    status = PyConfig_SetBytesString(config, &config->home, root);
    if (PyStatus_Exception(status))
        return status;
    status = PyConfig_SetBytesString(config, &config->executable, executable);
    if (PyStatus_Exception(status))
        return status;
    status = PyConfig_SetBytesString(config, &config->run_command, COMMAND);
    if (PyStatus_Exception(status))
        return status;
    status = append_path(config, "%s/lib/python%d.%d", root);
    if (PyStatus_Exception(status))
        return status;
    return append_path(config, "%s/lib/python%d.%d/site-packages", root);
}

static int run(int argc, char **argv, const char *root)
{
    PyPreConfig before;
    PyConfig config;
    PyStatus status;

    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1; /* names are bytes, whatever the locale is */
    status = Py_PreInitialize(&before);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    PyConfig_InitIsolatedConfig(&config);
    status = configure(&config, argc, argv, root);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    return Py_RunMain();
}

int main(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *name = argc > 0 ? (slash != NULL ? slash + 1 : argv[0]) : "";
    char root[PATH_MAX];

    if (strncmp(name, "python", 6) == 0)
        return Py_BytesMain(argc, argv);
    if (find_root(root, sizeof root) < 0)
        return refuse("cannot find its own directory; /proc is needed");
    return run(argc, argv, root);
}
