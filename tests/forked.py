"""Processes that have fastai in them from the start.

To import fastai takes five to ten seconds of a core, more than most of what the tests run. Here it is imported once, in a
process that does nothing else, and each program runs in a copy (a fork) of that: as clean as a new process, but for what
is in `warm`. This package is not: each program imports its modules anew, and registries begin empty. A test of what an
import costs, changes or prints needs a new process.
"""
import multiprocessing, os, runpy, sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

warm = ['fastai.vision.all', 'torch._dynamo', 'sklearn.linear_model', 'sklearn.model_selection', 'timm', 'execnb.shell']

@contextmanager
def one_thread():
    "The process that is copied has one thread: the numbers of a lesson depend on it"
    multiprocessing.get_context('forkserver').set_forkserver_preload(warm)
    was = os.environ.get('OMP_NUM_THREADS')
    os.environ['OMP_NUM_THREADS'] = '1'
    try: yield
    finally:
        if was is None: del os.environ['OMP_NUM_THREADS']
        else: os.environ['OMP_NUM_THREADS'] = was

def _program(out, argv, cwd, env):
    "What a new process would do"
    for o in 1,2: os.dup2(os.open(f'{out}/{o}', os.O_WRONLY|os.O_CREAT), o)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    multiprocessing.set_start_method(None, force=True)
    sys.argv = argv
    runpy.run_path(argv[0], run_name='__main__')

def run(
    script, # A file of Python, such as a console script
    *args, # Its arguments
    cwd=None, env=None, # As for `subprocess.run`
    timeout=600, # Seconds, after which it is killed
): # returncode, stdout, stderr
    "As `subprocess.run([sys.executable, script, *args], capture_output=True, text=True)`"
    with TemporaryDirectory() as d:
        args = d,[str(o) for o in (script,*args)],str(cwd or os.getcwd()),dict(env or os.environ)
        p = multiprocessing.get_context('forkserver').Process(target=_program, args=args)
        with one_thread(): p.start()
        p.join(timeout)
        if late := p.exitcode is None:
            p.kill()
            p.join()
        out,err = (Path(d, o).read_text(encoding='utf-8', errors='replace') if Path(d, o).exists() else '' for o in '12')
    if late: raise TimeoutError(f'{script} took more than {timeout} seconds:\n{out}{err}')
    return SimpleNamespace(returncode=p.exitcode, stdout=out, stderr=err)

def code(src, *args, **kwargs):
    "`run` of a piece of code, instead of a file"
    with TemporaryDirectory() as d:
        Path(d, 'code.py').write_text(src, encoding='utf-8')
        return run(Path(d, 'code.py'), *args, **kwargs)

def spawn(f, args, nprocs):
    "As `torch.multiprocessing.spawn`: `f(rank, *args)` in each of `nprocs` processes"
    from torch.multiprocessing import start_processes
    with one_thread(): start_processes(f, args, nprocs, start_method='forkserver')
