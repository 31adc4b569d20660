"Every notebook runs from top to bottom, each in a process of its own"
import os, re, subprocess, sys
from pathlib import Path

import forked, pytest

nbs = Path(__file__).resolve().parents[1]/'nbs'
notebooks = sorted(o.relative_to(nbs) for o in nbs.rglob('*.ipynb') if not any(p[0] in '_.' for p in o.relative_to(nbs).parts))

def run_nb(nb): # Cells marked `eval: false` are nbdev's to leave out
    env = {**os.environ, 'OMP_NUM_THREADS':'1'} # The numbers of a lesson depend on it: one thread gives those on the page
    cmd = Path(__file__).with_name('page.py'),nb,'--n-workers','0'
    # fastai changes what a tensor can do: a page that does without it must not find it there
    if 'from fastai.' not in Path(nb).read_text(encoding='utf-8'):
        return subprocess.run([sys.executable, *cmd], cwd=nbs.parent, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    r = forked.run(*cmd, cwd=nbs.parent, env=env)
    r.stdout += r.stderr
    return r

wangs = [Path('tutorials/imagewang.ipynb'), Path('tutorials/sesemi.ipynb')]

@pytest.mark.parametrize('nb', [o for o in notebooks if o not in wangs], ids=lambda o: o.with_suffix('').as_posix())
def test_notebook(nb):
    r = run_nb(nbs/nb)
    if r.returncode: pytest.fail(r.stdout, pytrace=False)
    assert 'Success.' in r.stdout, f'{nb} was not run: {r.stdout}'

@pytest.mark.parametrize('wang', wangs, ids=lambda o: o.stem)
def test_imagewang_tutorial(tmp_path, wang):
    "The whole job on drawn images: the tutorial with one path changed"
    from fastai_contrastive.data import synth_images
    images = synth_images(tmp_path/'images', n_train=25, n_unsup=300, n_valid=10, size=64)
    src,line = (nbs/wang).read_text(encoding='utf-8'),'path = untar_data(URLs.IMAGEWANG_160)'
    assert src.count(line)==1, f'{wang} should get its path by one line: {line}'
    (tmp_path/'pyproject.toml').write_text('[project]\nname = "tutorial"\n[tool.nbdev]\n')
    nb = tmp_path/wang.name
    nb.write_text(src.replace(line, f"path = Path('{images}')"), encoding='utf-8')
    r = run_nb(nb)
    assert not r.returncode and 'Success.' in r.stdout, r.stdout

def test_failure_is_seen(tmp_path):
    "A notebook whose assertion fails is reported, with its traceback"
    import nbformat
    from nbformat.v4 import new_notebook, new_code_cell
    nbformat.write(new_notebook(cells=[new_code_cell("assert 'sun'=='rain'")]), tmp_path/'bad.ipynb')
    r = run_nb(tmp_path/'bad.ipynb')
    assert r.returncode and 'AssertionError' in r.stdout and "'sun'=='rain'" in r.stdout

def test_pages_draw_the_same(tmp_path):
    "A page that a random number breaks fails each time or never, not once in fifty runs"
    import nbformat
    from nbformat.v4 import new_notebook, new_code_cell
    src = "import random, numpy as np, torch{}\nassert 0, (random.random(),float(np.random.rand()),float(torch.rand(1)))"
    for name,more in (('plain',''), ('fast','\nfrom fastai.vision.all import *')):
        nbformat.write(new_notebook(cells=[new_code_cell(src.format(more))]), tmp_path/f'{name}.ipynb')
    outs = [re.findall(r'AssertionError: (\(.*\))', run_nb(tmp_path/f'{o}.ipynb').stdout)[0] for o in ('plain','fast','fast')]
    assert len(set(outs))==1, outs

def test_notebooks_begin_clean(tmp_path):
    "Nothing of this package, no random state and no folder of another program's; one thread; a failure says so"
    code = "import os, sys, torch, random; print(sorted(o for o in sys.modules if o.startswith('fastai_contrastive')), os.getcwd(), sys.argv, __name__, torch.get_num_threads(), os.environ.get('HERE'), 'fastai' in sys.modules)"
    for i in range(2):
        r = forked.code(f"{code}; os.chdir('/'); import fastai_contrastive.data; random.random(); sys.exit({i})", cwd=tmp_path, env={**os.environ, 'HERE':str(i)})
        assert r.returncode==i, r.stderr
        mods,rest = r.stdout.split('] ', 1)
        assert mods=='[' and rest.startswith(f'{tmp_path} [') and rest.endswith(f"code.py'] __main__ 1 {i} True\n")
    with pytest.raises(TimeoutError, match='(?s)code.py took more than 1 seconds:.*begun'):
        forked.code("import time; print('begun', flush=True); time.sleep(60)", timeout=1)
