"The documentation: every notebook has a page that can be read without a network, and nothing in it leads nowhere"
import ast, importlib.util, json, re, subprocess, sys
from configparser import ConfigParser
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat, pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

root = Path(__file__).resolve().parents[1]
nbs = root/'nbs'
sources = sorted(o.relative_to(nbs).with_suffix('') for pat in ('*.ipynb','*.md') for o in nbs.rglob(pat)
                 if '.ipynb_checkpoints' not in o.parts and 'results' not in o.parts)
notebooks = [o for o in sources if (nbs/o).with_suffix('.ipynb').exists()]
pages = pytest.mark.parametrize('page', sources, ids=lambda o: o.as_posix())
nb_pages = pytest.mark.parametrize('page', notebooks, ids=lambda o: o.as_posix())

@pytest.fixture(scope='session')
def conf():
    spec = importlib.util.spec_from_file_location('docs_conf', root/'docs/conf.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

def build(src, out):
    return subprocess.run([sys.executable, '-m', 'sphinx', '-c', root/'docs', src, out/'html', '-d', out/'doctrees', '-j', '2', '-q', '-W', '--keep-going'],
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The folder of the pages, built once as `make docs` builds them"
    d = tmp_path_factory.mktemp('docs')
    r = build(nbs, d)
    assert not r.returncode, r.stdout
    return d/'html'

@pytest.fixture(scope='session')
def soup():
    "`soup(file)`: a page, read once"
    return lru_cache(None)(lambda f: BeautifulSoup(f.read_text(encoding='utf-8'), 'html.parser'))

@pytest.fixture(scope='session')
def ids(soup): return lru_cache(None)(lambda f: {o['id'] for o in soup(f).find_all(id=True)})

def file(site, page): return site/f'{page.as_posix()}.html'

def cells(page): return nbformat.read((nbs/page).with_suffix('.ipynb'), as_version=4).cells

def visible(page): return [c for c in cells(page) if not re.search(r'^#\|\s*(hide|include: false)\s*$', c.source, re.M)]

def prose(page): return ''.join(f'{c.source}\n\n' for c in cells(page) if c.cell_type=='markdown')

@pages
def test_page_and_links(site, soup, ids, page):
    "A page is there; each link, picture, script and style of it leads to a file, and to a place in that file"
    f = file(site, page)
    assert f.exists(), f'{page} has no page'
    bad = []
    for o in soup(f).find_all(['a','img','link','script','source','iframe']):
        url = o.get('href') or o.get('src')
        if not url: continue
        u = urlsplit(url)
        if u.scheme in ('http','https','mailto') and o.name=='a' or u.scheme=='data': continue
        to = (f.parent/unquote(u.path)).resolve() if u.path else f
        if u.scheme or u.netloc or not to.is_file(): bad.append(url)
        elif u.fragment and to.suffix=='.html' and unquote(u.fragment) not in ids(to): bad.append(f'{url} (no such place)')
    assert not bad, f'{page}: {bad}'

def test_reached(site, soup):
    "The start page's sidebar leads to every page, floors in their order and the pages of a floor in theirs"
    got = [o['href'] for o in soup(site/'index.html').select('.sidebar-tree a.internal')]
    assert {f'{o.as_posix()}.html' for o in sources} <= {*got, 'index.html'}
    floors = [o.split('/')[0] for o in got if o.endswith('/index.html')]
    assert floors == ['tutorials','parts','data','terms','objectives','pretext','evaluation','runs','report','commands']
    for k in floors[1:]: assert (ps := [o for o in got if o.startswith(f'{k}/0') or o.startswith(f'{k}/1')]) == sorted(ps)

def test_every_floor_is_in_the_documentation(conf):
    assert {o.parent.name for o in nbs.glob('*/*.ipynb')} == set(conf.floors)

loaders = dict(script='src', img='src', link='href', iframe='src', source='src', audio='src', video='src', embed='src', object='data')

def test_nothing_from_another_host(site, soup):
    "No page, style or script loads anything over the network"
    bad = []
    for f in site.rglob('*.html'):
        s = soup(f)
        urls = [o.get(a, '') for t,a in loaders.items() for o in s.find_all(t)]
        bad += [f'{f.name}: {o}' for o in urls if re.match(r'(\w+:)?//', o)]
        bad += [f'{f.name}: {o.string[:80]}' for o in s.find_all(['style','script']) if re.search(r'(url\(|import|fetch\(|src\s*=)\W{0,3}https?:', o.string or '')]
    for f in site.rglob('*.css'): bad += [f'{f.name}: {o}' for o in re.findall(r'(?:url\(|@import)\s*["\']?(?:https?:)?//[^)\s]+', f.read_text(encoding='utf-8'))]
    assert not bad, bad

def index(site):
    s = (site/'searchindex.js').read_text(encoding='utf-8')
    return json.loads(re.fullmatch(r'Search\.setIndex\((.*)\);?\s*', s, re.S)[1])

def test_search(site, soup):
    "The search has every page, and finds a word of the prose and a name of ours"
    ix = index(site)
    assert {o.as_posix() for o in sources} <= set(ix['docnames'])
    def hits(word):
        ns = [ix[k].get(word, []) for k in ('terms','titleterms')]
        return {ix['docnames'][o] for n in ns for o in ([n] if isinstance(n, int) else n)}
    assert 'objectives/00_simclr' in hits('simclr') and 'tutorials/first_term' in hits('callback')
    assert any('SimCLR' in str(o) for o in ix['objects'].get('fastai_contrastive.objectives.simclr', []))
    assert soup(site/'search.html').find('form') and soup(site/'index.html').find('form', action='search.html')

def public():
    "(module, name) of every class and function that an `__all__` names and its module makes"
    for f in sorted((root/'fastai_contrastive').rglob('*.py')):
        src = f.read_text(encoding='utf-8')
        if '# AUTOGENERATED' not in src: continue
        mod,tree = '.'.join(f.relative_to(root).with_suffix('').parts),ast.parse(src)
        alls = next(ast.literal_eval(o.value) for o in tree.body if isinstance(o, ast.Assign) and o.targets[0].id=='__all__')
        made = {o.name for o in tree.body if isinstance(o, (ast.ClassDef,ast.FunctionDef))}
        yield from ((mod,o) for o in alls if o in made)

def test_every_name_has_its_place(site, soup):
    "Whatever is public is an object of the index, and its link leads to the cell that makes it"
    ix,names = index(site),list(public())
    assert len(names)>100
    bad = []
    for mod,n in names:
        got = next((o for o in ix['objects'].get(mod, []) if o[-1]==n), None)
        at = got and soup(site/f"{ix['docnames'][got[0]]}.html").find(id=f'{mod}.{n}')
        at = at and (at.find_parent('div', class_='tag_exported') or at) # a cell that makes two names has the place of the second inside
        if not at or not re.search(rf'\b(class|def) {n}\b', at.get_text()): bad.append(f'{mod}.{n}')
    assert not bad, f'in no index, or at no cell: {bad}'

def test_names_in_backticks_are_links(site, soup):
    "From wherever they stand to the page that makes them; a command to its function, a page to itself"
    def to(page, text): # without the numbers of pages
        got = [o.parent for o in soup(file(site, Path(page))).select('article code') if o.get_text()==text]
        return {re.sub(r'/\d\d_', '/', o['href']) for o in got if o.name=='a'}
    at = 'fastai_contrastive.objectives.simclr.SimCLR'
    assert to('index', 'SimCLR') == {f'objectives/simclr.html#{at}'}
    assert to('index', 'contrastive-eval') == {'commands/cli.html#fastai_contrastive.cli.evaluate'}
    assert to('index', 'CONTRIBUTING.md') == {'contributing.html'}
    assert to('tutorials/first_term', 'SimCLR') == {f'../objectives/simclr.html#{at}'}
    assert to('tutorials/objectives', 'mocov3') == {'../objectives/mocov3.html#fastai_contrastive.objectives.mocov3.MoCoV3'}

def equations(page):
    "Equations of a page's prose: those on lines of their own, and those within a line; code is none"
    md = re.sub(r'```.*?```|(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)', '', prose(page), flags=re.S)
    blocks = re.findall(r'\$\$.+?\$\$', md, flags=re.S)
    return len(blocks), len(re.findall(r'(?<![\\$])\$[^$]+\$', re.sub(r'\$\$.+?\$\$', '', md, flags=re.S)))

@nb_pages
def test_equations(site, soup, page):
    "Each equation is MathML, and none is left as it was typed"
    art = soup(file(site, page)).find('article')
    got = art.find_all('math')
    blocks = sum(o.get('display')=='block' for o in got)
    assert (blocks, len(got)-blocks) == equations(page)
    text = ' '.join(t for t in art.find_all(string=True) if not t.find_parents(['pre','code','script','style']))
    assert not (raw := re.findall(r'.{0,30}(?:\$|\\[a-zA-Z]{3,}).{0,30}', text)), f'not rendered: {raw}'

@nb_pages
def test_cells(site, soup, page):
    "Every cell that a reader may see is there, with its pictures; directives and hidden cells are not"
    art = soup(file(site, page)).find('article')
    code = [o.get_text() for o in art.select('div.cell div.cell_input pre')]
    assert not [o for o in code if re.search(r'^#\|', o, re.M)]
    shown = [re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip() for c in visible(page) if c.cell_type=='code' and 'echo: false' not in c.source]
    assert [o.strip() for o in code] == [o for o in shown if o]
    drawn = sum('image/png' in o.get('data', {}) and 'text/html' not in o.data for c in visible(page) for o in c.get('outputs', []) if 'output: false' not in c.source)
    assert len(art.select('div.cell_output img')) == drawn

def test_no_litter(conf):
    "What a progress bar leaves behind is not shown, the table of the recorder is"
    style,table = '<style>progress { border: none; }</style>\n','<table><tr><td>1</td></tr></table>'
    outs = [new_output('display_data', data={'text/html':o}) for o in (style, '', style+table)]
    nb = conf.page(new_notebook(cells=[new_code_cell('learn.fit(1)', outputs=outs)]), None)
    assert [o.data['text/html'] for o in nb.cells[0].outputs] == [style+table]

def test_directives(conf):
    "What nbdev's directives ask for, on a notebook that uses them all"
    nb = new_notebook(cells=[new_markdown_cell('# T\n\n> s\n\nProse'), new_code_cell('#| default_exp m'), new_code_cell('#| hide\nsecret = 1'),
        new_code_cell('#| export\ndef f(): pass'), new_code_cell('#| eval: false\nlearn.fit(1)'), new_code_cell('#| output: false\nprint(1)', outputs=[new_output('stream', text='one\n')]),
        new_code_cell('#| echo: false\nprint(2)', outputs=[new_output('stream', text='two\n')]), new_code_cell('#| include: false\nhidden = 1')])
    src = conf.page(nb, conf.module(nb))
    assert [c.source for c in src.cells] == ['# T\n\n> s\n\n*Module* `fastai_contrastive.m`\n\nProse\n\n', 'def f(): pass', 'learn.fit(1)', 'print(1)', 'print(2)']
    assert [c.metadata.get('tags', []) for c in src.cells[1:]] == [['exported'], [], [], ['remove-input']]
    assert [len(c.get('outputs', [])) for c in src.cells] == [0,0,0,0,1]

def test_faults_stop_the_build(conf, tmp_path):
    "A link to nowhere, an equation that cannot be drawn and a picture that is not there are named"
    for o in ('contributing','changelog', *(f'{o}/index' for o in conf.floors)):
        f = tmp_path/f'nbs/{o}.md'
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text('# T\n')
    text = '# T\n\n[x](nowhere.ipynb) $\\nosuchcommand{x}$\n\n![](none.png)'
    nbformat.write(new_notebook(cells=[new_markdown_cell(text)]), tmp_path/'nbs/index.ipynb')
    r = build(tmp_path/'nbs', tmp_path/'out')
    assert r.returncode and all(o in r.stdout for o in ('nowhere.ipynb','nosuchcommand','none.png')), r.stdout

@pytest.mark.parametrize('tex,left', [(r'\max\Big(\frac{a}{b}\Big)','1.623em'), (r'k_1 \dots k_K','…'), (r'\bigl\lvert x\bigr\rvert','1.2em'), (r'\arg\max_{q\in Q}\; q','munder')])
def test_mathml(conf, tex, left):
    out = conf.mathml(tex, True)
    assert out.startswith('<math') and 'display="block"' in out and left in out and '\\' not in out

def test_requirements():
    "Whoever asks for `docs` can build them, and whoever runs the tests can, too"
    cfg = ConfigParser(interpolation=None, delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    docs,dev = (set(cfg['DEFAULT'][f'{o}_requirements'].split()) for o in ('docs','dev'))
    assert {'myst-nb','furo'} <= docs <= dev

def test_no_address_of_ours():
    "Nothing is served yet, so nothing may say where: no docstring, page or setting has an address of this library"
    fs = [o for pat in ('*.py','*.ipynb','*.md','*.ini','*.toml') for k in ('fastai_contrastive','nbs','docs','scripts') for o in (root/k).rglob(pat)]
    fs += [root/o for o in ('README.md','CONTRIBUTING.md','CHANGELOG.md','settings.ini','pyproject.toml','setup.py')]
    bad = [f'{f.relative_to(root)}: {m[0]}' for f in fs for m in re.finditer(r'https?://[^\s"\')]*fastai[-_]contrastive[^\s"\')]*|Docs: https?://\S+', f.read_text(encoding='utf-8'))]
    assert not bad, bad
