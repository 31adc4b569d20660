"The parts of the repository agree: metadata, layers, exports, README, commands; and importing it is cheap and harmless"
import ast, inspect, json, os, re, shutil, stat, subprocess, sys
from configparser import ConfigParser
from email import message_from_string
from importlib import import_module
from importlib.metadata import distribution, entry_points
from pathlib import Path
from types import FunctionType

import nbformat, pytest
from readme import readme
from wrap_all import wrap_all
try: import tomllib
except ImportError: import tomli as tomllib

root = Path(__file__).resolve().parents[1]
name = 'fastai_contrastive'
lib,nbs = root/name,root/'nbs'

def read_cfg():
    cfg = ConfigParser(interpolation=None, delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']
cfg = read_cfg()

def call(*args, cwd=root, **env):
    env = {**{k:v for k,v in os.environ.items() if k not in ('IN_TEST','MAKEFLAGS','MAKELEVEL')}, **env}
    return subprocess.run([str(a) for a in args], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)

def py(code, **kw):
    "What `code`, in a new process, prints last, read as JSON"
    r = call(sys.executable, '-W', 'ignore', '-c', code, **kw)
    assert not r.returncode, r.stdout
    return json.loads(r.stdout.splitlines()[-1])

def requires(meta): return sorted(re.sub(r'\s', '', o).replace('"', "'") for o in meta.get_all('Requires-Dist'))

def wanted():
    res = cfg['requirements'].split()
    for k,v in cfg.items():
        if k.endswith('_requirements'): res += [f"{o};extra=='{k.removesuffix('_requirements')}'" for o in v.split()]
    return sorted(res)

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The metadata that a build of this source gives"
    d = tmp_path_factory.mktemp('build')
    for f in ('settings.ini','setup.py','pyproject.toml','README.md','LICENSE'): shutil.copy(root/f, d)
    for o in (name,'out'): (d/o).mkdir()
    shutil.copy(lib/'__init__.py', d/name)
    r = call(sys.executable, '-c', 'from setuptools import build_meta as b; b.prepare_metadata_for_build_wheel("out")', cwd=d)
    assert not r.returncode, r.stdout
    assert 'is ignored' not in r.stdout and 'MissingDynamic' not in r.stdout, f'setup.py sets a field that `dynamic` does not name:\n{r.stdout}'
    info, = (d/'out').glob('*.dist-info')
    return message_from_string((info/'METADATA').read_text(encoding='utf-8')), (info/'entry_points.txt').read_text()

def test_metadata_built(built):
    "settings.ini is where each field of the built package comes from"
    meta,eps = built
    got = {k:meta[k] for k in ('Name','Version','Summary','Author','License-Expression','Requires-Python','Keywords')}
    assert got == {'Name':cfg['lib_name'], 'Version':cfg['version'], 'Summary':cfg['description'], 'Author':cfg['author'],
        'License-Expression':cfg['license'], 'Requires-Python':f">={cfg['min_python']}", 'Keywords':','.join(cfg['keywords'].split())}
    assert requires(meta) == wanted()
    assert {o.replace(' ','') for o in eps.splitlines() if '.cli:' in o} == set(cfg['console_scripts'].split())
    assert meta.get_payload().strip() == (root/'README.md').read_text(encoding='utf-8').strip()

def test_metadata_installed():
    "What is installed is this version, with these requirements and commands"
    d = distribution(name)
    assert d.version == cfg['version'], '`pip install -e .` again'
    assert requires(d.metadata) == wanted(), '`pip install -e .` again'
    assert {f'{o.name}={o.value}' for o in d.entry_points if o.group=='console_scripts'} == set(cfg['console_scripts'].split())

def test_one_version():
    assert import_module(name).__version__ == cfg['version']
    assert re.search(r'^## (\S+)', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)[1] == cfg['version']

def test_pyproject():
    "pyproject.toml holds nothing that settings.ini holds, but for the name, which the standard wants there"
    d = tomllib.loads((root/'pyproject.toml').read_text())['project']
    assert d.pop('name') == cfg['lib_name']
    assert set(d) == {'dynamic'}

def numbered(): return sorted(o for o in nbs.rglob('[0-9][0-9]_*.ipynb') if 'tutorials' not in o.parts and '.ipynb_checkpoints' not in o.parts)

def codes(nb): return [c.source for c in nbformat.read(nb, as_version=4).cells if c.cell_type=='code']

def module(nb):
    "The dotted name, below the package, of the module that a notebook exports"
    return next(m[1] for o in codes(nb) if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', o, re.M)))

def our_imports(src):
    "Modules of ours that `src` imports, at any depth, as dotted names below the package"
    src = '\n'.join('' if o.lstrip()[:1] in ('%','!') else o for o in src.splitlines())
    for n in ast.walk(ast.parse(src)):
        if isinstance(n, ast.Import): mods = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            assert not n.level, f'a relative import: {ast.unparse(n)}'
            mods = [f'{n.module}.{a.name}' for a in n.names] if n.module==name else [n.module]
        else: continue
        yield from (o.removeprefix(f'{name}.') for o in mods if o.startswith(f'{name}.') and not o.endswith('__version__'))

# From the ground up; folders side by side know nothing of one another
floors = [['parts'], ['data'], ['terms'], ['objectives','pretext'], ['evaluation'], ['runs'], ['report'], ['commands']]

def place(nb): return next(i for i,o in enumerate(floors) if nb.parent.name in o), int(nb.name[:2])

def layers():
    "Floor, folder and number of each module; those of a package, and of `all`, are its highest member's"
    res = {module(o): (place(o)[0], o.parent.name, place(o)[1]) for o in numbered()}
    for m,n in list(res.items()):
        if '.' in m: res[p] = max(n, res.get(p := m.split('.')[0], n))
    res['all'] = max(res[o] for o in our_imports((lib/'all.py').read_text()))
    return res

def test_every_notebook_is_on_a_floor():
    lost = [str(o.relative_to(nbs)) for o in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts and o not in numbered()
            and o!=nbs/'index.ipynb' and 'tutorials' not in o.parts]
    assert not lost and all(o.parent.parent==nbs and any(o.parent.name in f for f in floors) for o in numbered()), lost

def test_numbers_differ():
    ns = [(o.parent.name, o.name[:2]) for o in numbered()]
    assert len(ns)>1 and len(ns)==len(set(ns)), f'two notebooks of one floor have one number: {ns}'

@pytest.mark.parametrize('folder', sum(floors, []))
def test_room(folder):
    "Two digits in every folder: room for thirty more pages on each floor"
    assert max(place(o)[1] for o in numbered() if o.parent.name==folder) < 70

@pytest.mark.parametrize('nb', numbered(), ids=lambda o: f'{o.parent.name}-{o.stem}')
def test_layers(nb):
    "A notebook, its lessons included, imports from lower floors, and from its own only what stands before it"
    ls,me,(floor,n) = layers(),module(nb),place(nb)
    for src in codes(nb):
        for o in our_imports(src):
            assert o in ls, f'{nb.name} imports {o}, which no notebook makes'
            f,folder,k = ls[o]
            assert o==me or f<floor or (folder==nb.parent.name and k<n), f'{nb.parent.name}/{nb.name} imports {o} of {folder}/{k:02}'

@pytest.mark.parametrize('nb', [o for o in numbered() if o.parent.name in ('objectives','pretext')], ids=lambda o: o.stem)
def test_siblings(nb):
    "An objective knows no other method, a pretext task only what all of them share"
    me = module(nb)
    bad = [o for src in codes(nb) if re.search(r'^#\|\s*export', src, re.M) for o in our_imports(src)
           if o.split('.')[0] in ('objectives','pretext') and o not in (me,'pretext.core')]
    assert not bad, f'{nb.name} imports {bad}: what methods share lives in a layer below them'

@pytest.fixture(scope='module')
def alls():
    "The names that fastai's and our own star import bring"
    res = []
    for o in ('fastai.vision.all', f'{name}.all'):
        ns = {}
        exec(f'from {o} import *', ns)
        res.append({k:v for k,v in ns.items() if k!='__builtins__'})
    return res

def test_all_shadows_nothing(alls):
    fa,us = alls
    bad = [k for k,v in us.items() if k in fa and fa[k] is not v]
    assert not bad, f'from {name}.all import * replaces what fastai calls {bad}'

def test_all_is_ours(alls):
    bad = [k for k,v in alls[1].items() if k.startswith('_') or isinstance(v, (type,FunctionType)) and v.__module__.split('.')[0]!=name]
    assert not bad, f'{name}.all gives names that are not ours: {bad}'

def test_all_is_complete(alls):
    "Every module's names are there, and no two modules use one name for two things"
    for m in {module(o) for o in numbered() if o.parent.name!='commands'} - {'bench','growth'}:
        mod = import_module(f'{name}.{m}')
        for k in mod.__all__: assert alls[1].get(k) is getattr(mod, k), f'{m}.{k} is not what {name}.all calls {k}'

@pytest.mark.parametrize('pkg', ['objectives','pretext'])
def test_new_method_is_found(pkg, tmp_path):
    "A module put into the package is re-exported, though no file names it"
    shutil.copytree(lib, tmp_path/name, ignore=shutil.ignore_patterns('__pycache__'))
    for o in (tmp_path/name/pkg).glob('*.py'):
        if o.name!='__init__.py': o.unlink()
    (tmp_path/name/pkg/'one.py').write_text('__all__ = ["One"]\nclass One: pass\nclass Hidden: pass\n')
    code = f'import json\nfrom {name}.{pkg} import *\nprint(json.dumps([One.__module__, "Hidden" in globals(), "reexport" in globals()]))'
    assert py(code, cwd=tmp_path, PYTHONPATH=str(tmp_path)) == [f'{name}.{pkg}.one', False, False]

def test_import_cost():
    "Our import adds at most a tenth to fastai's: the best of up to five processes, since noise only ever adds"
    code = f'''
import json
from time import perf_counter as now
t0 = now()
from fastai.vision.all import *
t1 = now()
from {name}.all import *
print(json.dumps([t1-t0, now()-t1]))'''
    ts = []
    for i in range(5):
        ts.append(py(code))
        fa,us = map(min, zip(*ts))
        if i and us <= .1*fa: break
    assert us <= .1*fa, f'{us:.2f} s on top of {fa:.2f} s'

def test_import_changes_nothing():
    "No name, method, default or random state of fastai, fastcore or torch's modules is another one after our import"
    code = f'''
import json, random, sys, types, warnings
from fastai.vision.all import *
import numpy as np, torch

def sig(v):
    "What would differ if `v` were replaced or, for a container or a function's defaults, changed in place"
    if isinstance(v, types.FunctionType): return [id(v), id(v.__code__), *map(id, v.__defaults__ or ()), str(v.__kwdefaults__)]
    if type(v) in (list, tuple): return id(v), tuple(map(id, v))
    if type(v) in (dict, set): return id(v), tuple(map(id, v)), tuple(map(id, v.values())) if type(v) is dict else ()
    return id(v)

def snap():
    res = dict(random=hash(random.getstate()), numpy=hash(np.random.get_state()[1].tobytes()), torch=hash(torch.get_rng_state().numpy().tobytes()),
               threads=torch.get_num_threads(), grad=torch.is_grad_enabled(), dtype=str(torch.get_default_dtype()),
               warnings=hash(str(warnings.filters)),
               rc=hash(str(sorted(matplotlib.rcParams.items()))), callbacks=sig(defaults.callbacks), defaults=sig(vars(defaults)))
    mods = {{n:m for n,m in list(sys.modules.items()) if n in seen}}
    for n,m in mods.items():
        for k,v in list(vars(m).items()):
            if not isinstance(v, types.ModuleType) and k!='__warningregistry__': res[f'{{n}}.{{k}}'] = sig(v)
            if isinstance(v, type) and v.__module__==n:
                for a,o in list(vars(v).items()):
                    if a not in ('__abstractmethods__','_abc_impl'): res[f'{{n}}.{{k}}.{{a}}'] = sig(o)
    for a,o in vars(torch.Tensor).items(): res[f'Tensor.{{a}}'] = sig(o)
    return res

pkgs = 'fastai','fastcore','fasttransform','fastprogress'
seen = {{n for n in sys.modules if n.split('.')[0] in pkgs or n.startswith(('torch.nn','torch.optim'))}}
snap()
a = snap()
from {name}.all import *
b = snap()
print(json.dumps([len(a), sorted(k for k in a.keys()|b.keys() if a.get(k)!=b.get(k))]))'''
    n,changed = py(code)
    assert n>5000 and not changed, f'the import changed {changed}'

def test_readme_in_step():
    assert (root/'README.md').read_text(encoding='utf-8') == readme(), 'run `make readme`: README.md is made from nbs/index.ipynb'

def test_readme_is_short():
    "What stays is read in one go: long tables have a page of the documentation"
    ls = (root/'README.md').read_text(encoding='utf-8').splitlines()
    assert len(ls)<=150
    assert not (bad := [f'{i}: {len(o)}' for i,o in enumerate(ls, 1) if len(o)>160]), bad

def test_readme_first_screen():
    "What it does, a picture of it, the two commands and the ten lines, in this order and before any heading but the title"
    md = (root/'README.md').read_text(encoding='utf-8').split('\n## ')[0]
    ats = [md.index(o) for o in ('\n> ', '![', '\nmake demo', '\nmake test', 'ContrastiveCallback(')]
    assert ats==sorted(ats) and len(md.splitlines())<=50
    code, = re.findall(r'```python\n(.*?)```', md, re.S)
    assert len([o for o in code.splitlines() if o.strip()])<=10 and max(map(len, code.splitlines()))<=120

def test_readme_pictures():
    "Each picture and page that the README names is there"
    links = re.findall(r'\]\(([^)#\s]+)|src="([^"]+)"', (root/'README.md').read_text(encoding='utf-8'))
    missing = [o for a,b in links if not (o := a or b).startswith(('http','mailto')) and not (root/o).exists()]
    assert not missing, f'the README names {missing}'

def test_readme_cells(tmp_path):
    "Directives and hidden cells are for the machine; paths are seen from the root; a picture in an output is refused"
    from nbformat.v4 import new_notebook, new_markdown_cell, new_code_cell, new_output
    nb = new_notebook(cells=[new_markdown_cell('# T\n![v](images/v.png) [t](tutorials/a.ipynb) [u](https://x.org/b.ipynb) [f](objectives/index.md)'),
        new_code_cell('#| hide\nsecret = 1'), new_code_cell('#| eval: false\nlearn.fit(1)'),
        new_code_cell('#| echo: false\nprint(2)', outputs=[new_output('stream', text='two\n')])])
    nbformat.write(nb, tmp_path/'i.ipynb')
    md = readme(tmp_path/'i.ipynb')
    assert '![v](nbs/images/v.png) [t](nbs/tutorials/a.ipynb) [u](https://x.org/b.ipynb) [f](nbs/objectives/index.md)' in md
    assert '```python\nlearn.fit(1)\n```' in md and 'two' in md
    assert not any(o in md for o in ('secret','#|','print(2)'))
    nb.cells.append(new_code_cell('plot()', outputs=[new_output('display_data', data={'image/png':'aaaa'})]))
    nbformat.write(nb, tmp_path/'i.ipynb')
    with pytest.raises(ValueError, match='nbs/images'): readme(tmp_path/'i.ipynb')

@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A copy in which the modules were made anew, and the notebooks cleaned"
    d = tmp_path_factory.mktemp('export')
    shutil.copy(root/'pyproject.toml', d)
    for o in (lib,nbs): shutil.copytree(o, d/o.name, ignore=shutil.ignore_patterns('__pycache__','.ipynb_checkpoints'))
    for o in (d/name).rglob('*.py'):
        if o.name=='_modidx.py' or '# AUTOGENERATED' in o.read_text(encoding='utf-8'): o.unlink()
    for o in ('nbdev-export','nbdev-clean'):
        r = call(Path(sys.executable).with_name(o), cwd=d)
        assert not r.returncode, r.stdout
    wrap_all(d/name)
    return d

@pytest.mark.parametrize('what,ext', [(name,'py'), ('nbs','ipynb')])
def test_in_step(exported, what, ext):
    "The modules are what the notebooks export, none is left over, and the notebooks are clean"
    def files(d):
        fs = [o for o in (d/what).rglob(f'*.{ext}') if '.ipynb_checkpoints' not in o.parts]
        return {str(o.relative_to(d)): o.read_text(encoding='utf-8') for o in fs}
    want,got = files(exported),files(root)
    bad = sorted(k for k in want.keys()|got.keys() if want.get(k)!=got.get(k))
    assert not bad, f'run `make export`: not in step: {bad}'

def repo_files():
    r = call('git', 'ls-files', '-co', '--exclude-standard') if shutil.which('git') and (root/'.git').exists() else None
    return [root/o for o in r.stdout.splitlines() if (root/o).is_file()] if r and not r.returncode else []

kinds = {'.ipynb':'notebooks', '.py':'code', '.md':'prose', '.json':'results'}
machine = re.compile(r'(?<![\w.~])/(?:root|work|home|Users|tmp/(?:nbsrc|brief))/|(?:pypi\.org|python[h]osted)|\.\./shared')

@pytest.mark.parametrize('kind', [*kinds.values(), 'others'])
def test_no_machine_paths(kind):
    "No file, nor the output of a notebook, holds a path of the machine it was made on, or a package registry's address"
    fs = repo_files()
    if not fs: pytest.skip('not a git checkout')
    bad = []
    for f in fs:
        if kinds.get(f.suffix, 'others')!=kind: continue
        try: txt = f.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        if f==root/'.ci/run': txt = re.sub(r'\.\./shared/data/install', '', txt)
        bad += [f'{f.relative_to(root)}:{txt.count(chr(10), 0, m.start())+1} {m[0]}' for m in machine.finditer(txt)]
    assert not bad, '\n'.join(bad)

def test_stand_outs(capsys):
    "Never fails: prints the functions past 40 lines and the modules past 250, each a place to look"
    rows = []
    for f in sorted(lib.rglob('*.py')):
        if f.name=='_modidx.py': continue
        src = f.read_text(encoding='utf-8')
        if (n := len(src.splitlines())) > 250: rows.append(f'{f.relative_to(root)}: {n} lines'+' (!)'*(n>400))
        rows += [f'{f.relative_to(root)}:{o.lineno} {o.name}: {k} lines' for o in ast.walk(ast.parse(src))
                 if isinstance(o, ast.FunctionDef) and (k := o.end_lineno-o.lineno+1) > 40]
    with capsys.disabled(): print('', *(rows and ['Long, each a place to look:', *rows]), sep='\n  ')

def exported_lines(src): return [o for o in src.splitlines() if o.strip() and not o.startswith('#|')] if re.match(r'\s*#\|\s*export', src) else []

@pytest.mark.parametrize('nb', numbered(), ids=lambda o: f'{o.parent.name}-{o.stem}')
def test_page_explains(nb):
    "Five words of prose for an exported line, on the average of a page: what exports more than it explains is a listing"
    cells = nbformat.read(nb, as_version=4).cells
    words = sum(len(c.source.split()) for c in cells if c.cell_type=='markdown')
    lines = sum(len(exported_lines(c.source)) for c in cells if c.cell_type=='code')
    assert words >= 5*lines, f'{words} words for {lines} exported lines: {words/lines:.1f} each'

@pytest.mark.parametrize('what', [name,'nbs','scripts','docs'])
def test_line_length(what):
    "120 characters are a line's end, in the modules and in the cells of every notebook"
    rows = [(f'{f.relative_to(root)}:{i}', l) for f in sorted((root/what).rglob('*.py')) if f.name!='_modidx.py' and '.ipynb_checkpoints' not in f.parts
            for i,l in enumerate(f.read_text(encoding='utf-8').splitlines(), 1)]
    rows += [(f'{f.relative_to(root)} {c.id}', l) for f in sorted((root/what).rglob('*.ipynb')) if '.ipynb_checkpoints' not in f.parts
             for c in nbformat.read(f, as_version=4).cells if c.cell_type=='code' for l in c.source.splitlines()]
    bad = [f'{at} has {len(l)}: {l.strip()[:60]}' for at,l in rows if len(l)>120]
    assert not bad, '\n'.join([f'{len(bad)} lines are longer than 120 characters', *bad[:40]])

def lacks(o, who):
    "What the documentation of a function or a class lacks: a docstring, or the type of something that it takes"
    if not inspect.getdoc(o): yield f'{who} has no docstring'
    init = vars(o).get('__init__') if isinstance(o, type) else o
    if not isinstance(inspect.unwrap(init) if init else None, FunctionType): return
    for k,p in inspect.signature(init, follow_wrapped=False).parameters.items():
        if k in ('self','cls','memo') or p.kind in (p.VAR_POSITIONAL,p.VAR_KEYWORD): continue
        if p.annotation is p.empty: yield f'{who}({k}=) has no type'

def public_functions(mod):
    "Public functions, classes and methods that `mod` makes, with the names a reader knows them by"
    for k in mod.__all__:
        o = getattr(mod, k)
        if getattr(o, '__module__', None)!=mod.__name__ or not callable(o): continue
        yield k,o
        if not isinstance(o, type): continue
        for m,f in vars(o).items():
            f = getattr(f, '__func__', f)
            if m.startswith('_') or not isinstance(f, FunctionType): continue
            # What only overrides a method of a base, such as a callback's events or `forward`, is documented there
            if not any(hasattr(b, m) for b in o.__mro__[1:]) and not hasattr(Callback, m) and m not in all_events: yield f'{k}.{m}',f

from fastai.callback.core import Callback, _events
all_events = {str(o) for o in _events}

@pytest.mark.parametrize('mod', sorted(module(o) for o in numbered()))
def test_documented(mod):
    "Every public class, function and method has a docstring, and what it takes has a type"
    bad = [r for k,o in public_functions(import_module(f'{name}.{mod}')) for r in lacks(o, k)]
    assert not bad, '\n'.join(bad)

@pytest.mark.parametrize('script', cfg['console_scripts'].split())
def test_console_script(script):
    cmd,path = script.split('=')
    mod,fn = path.split(':')
    assert callable(getattr(import_module(mod), fn)), f'{cmd} has nothing to call'

make = pytest.mark.skipif(not shutil.which('make'), reason='needs make')

@pytest.fixture
def stub(tmp_path):
    "A `python3` that writes down what it is asked, and makes environments of itself"
    f = tmp_path/'python3'
    f.write_text('''#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/contrastive-demo";;
  --version) echo Python 3.8.2;;
  *version_info*) test "$FAIL" != old;;
  *"import venv"*) test "$FAIL" != venv;;
  *"pip install"*) test "$FAIL" != pip;;
esac
''')
    f.chmod(f.stat().st_mode | stat.S_IXUSR)
    def _make(*args, fail=''): return call('make', *args, f'PYTHON={f}', f'VENV={tmp_path/"env"}', LOG=str(tmp_path/'log'), FAIL=fail)
    _make.log = lambda: [o for o in (tmp_path/'log').read_text().splitlines() if 'python3 -c' not in o]
    return _make

@make
def test_make_demo_and_test(stub):
    "From nothing: an environment, an install and the demo; then only the demo; `test` adds what tests need, and `demo` does not undo it"
    def asked(target):
        n = len(stub.log()) if stub.n else 0
        r = stub(target)
        assert not r.returncode, r.stdout
        stub.n = 1
        return [re.sub(r'\S+/env', 'env', o.split(' --disable-pip-version-check')[0] + o.partition('check')[2]) for o in stub.log()[n:]]
    stub.n = 0
    assert asked('demo') == ['python3 -m venv env', 'python -m pip install -e .', 'contrastive-demo ']
    assert asked('demo') == ['contrastive-demo ']
    assert asked('test') == ['python -m pip install -e .[dev]', 'python -m pytest']
    assert asked('test') == ['python -m pytest']
    assert asked('demo') == ['contrastive-demo ']

@make
def test_make_quick(stub):
    "The tests that it names are there, and what takes minutes is not among them"
    assert not (r := stub('quick')).returncode, r.stdout
    args = stub.log()[-1].split()
    assert args[:4]==['python','-m','pytest','--ff']
    fs = [o for o in args if o.startswith('tests')]
    assert len(fs)>2 and all((root/o).exists() for o in fs) and not [o for o in fs if re.search('notebooks|distributed|docs', o)]

@make
def test_make_test_first(stub):
    "The tests' environment is one that the demo can use as it is"
    assert not stub('test').returncode and not stub('demo').returncode
    assert sum('pip install' in o for o in stub.log())==1

@make
@pytest.mark.parametrize('fail,says', [('old','3.10 or later is needed, and .* is Python 3.8.2'),
    ('venv','without its venv module: install it'), ('pip','')], ids=['old','venv','pip'])
def test_make_fails(stub, fail, says):
    "A machine that lacks something is told what; nothing half made is taken for whole"
    r = stub('demo', fail=fail)
    assert r.returncode and re.search(says, r.stdout), r.stdout
    r = stub('demo')
    assert not r.returncode and any('pip install' in o for o in stub.log()) and stub.log()[-1].startswith('contrastive-demo')

@make
def test_make_help():
    "Each target says what it does"
    targets = re.search(r'^\.PHONY: (.*)', (root/'Makefile').read_text(), re.M)[1].split()
    out = call('make', 'help').stdout
    assert [o for o in targets if not re.search(rf'^make {o} +\S', out, re.M)] == []
    for o in targets: assert not (r := call('make', '-n', o)).returncode, r.stdout
