"The documentation, which Sphinx makes of the notebooks as they are: `make docs`"
import ast, re, sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/'scripts'))
from readme import directives, shown

cfg = ConfigParser(interpolation=None, delimiters=['='])
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

project,author,version = cfg['lib_name'],cfg['author'],cfg['version']
extensions = ['myst_nb']
exclude_patterns = ['results', '**/.ipynb_checkpoints', '**/_*']
nb_execution_mode = 'off' # A page shows what it gave when it was written; a test runs it again
nb_merge_streams = True
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4
html_theme,html_title = 'furo',project
pygments_dark_style = 'monokai'
suppress_warnings = ['misc.highlighting_failure'] # cells may hold what only a notebook understands
html_static_path,html_css_files = ['style.css'],['style.css']
html_math_renderer = 'mathml'
html_show_sourcelink = html_copy_source = html_show_copyright = False

floors = 'tutorials','parts','data','terms','objectives','pretext','evaluation','runs','report','commands'

def read(f): return nbformat.read(f, as_version=4)

def module(
    nb, # Notebook
): # Its dotted name; None where nothing is exported
    "The module that a notebook exports"
    ms = (re.search(r'^#\|\s*default_exp\s+(\S+)', c.source, re.M) for c in nb.cells if c.cell_type=='code')
    return next((f'{project}.{m[1]}' for m in ms if m), None)

modules = {f'{o}/{f.stem}':module(read(f)) for o in floors for f in (root/'nbs'/o).glob('*.ipynb')}

def head(nb):
    "The cell with the title"
    return next((c for c in nb.cells if c.cell_type=='markdown' and c.source.startswith('# ')), None)

def litter(o):
    "Is an output a progress bar's, of which its style or nothing is left?"
    html = o.get('data', {}).get('text/html')
    return html is not None and not re.sub(r'<style>.*?</style>|\s', '', html, flags=re.S)

def page(
    nb, # Notebook, as the file holds it
    mod, # The module that it exports
): # The same without directives and hidden cells; `exported` is the tag of what the module holds
    "What the documentation shows of a notebook"
    for c in nb.cells:
        ds = directives(c)
        tags = ['exported']*any(o.startswith('export') for o in ds) + ['remove-input']*('echo: false' in ds)
        if tags: c.metadata.tags = tags
        if c.cell_type=='code': c.outputs = [o for o in c.outputs if not litter(o)]
        if c.cell_type=='markdown': c.source = c.source.replace(' ± ', '\xa0±\xa0') # one number, one line
    nb.cells = [c for c in map(shown, nb.cells) if c]
    if mod and (c := head(nb)): # below the title and its subtitle
        c.source = re.sub(r'\A(#.*\n+(?:>.*\n+)*)', rf'\1*Module* `{mod}`'+'\n\n', c.source+'\n\n')
    return nb

def contents(
    folder, # Of a floor
)->str: # Markdown: a list with titles and subtitles, and a table of contents for the sidebar
    "The pages of a floor, in the order of their names"
    fs = sorted(folder.glob('*.ipynb'))
    heads = [re.match(r'# *(.+)\n+(?:> *(.+))?', getattr(head(read(f)), 'source', f'# {f.stem}')+'\n') for f in fs]
    rows = [f'- [{m[1]}]({f.name})' + (f': {m[2]}' if m[2] else '') for f,m in zip(fs, heads)]
    return '\n'.join(['', *rows, '', '```{toctree}', ':hidden:', *(f.stem for f in fs), '```', ''])

tops = '\n'.join(['```{toctree}', ':hidden:', *(f'{o}/index' for o in floors), 'contributing', 'changelog', '```'])

def on_read(app, docname, source):
    f = Path(app.env.doc2path(docname))
    if f.suffix=='.ipynb':
        nb = page(nbformat.reads(source[0], as_version=4), modules.get(docname))
        if docname==app.config.root_doc: nb.cells.append(nbformat.v4.new_markdown_cell(tops))
        source[0] = nbformat.writes(nb)
    elif f.stem=='index':
        for o in (f.parent, *f.parent.glob('*.ipynb')): app.env.note_dependency(o) # when one comes, goes or changes
        source[0] += contents(f.parent)

# Names: where each is made, and links to it from wherever it stands in backticks

def patched(f):
    "What stands before the name of a function that `@patch` puts into a class"
    a = f.args.args[0].annotation if f.args.args else None
    is_patch = any(isinstance(o, ast.Name) and o.id=='patch' for o in f.decorator_list)
    return f'{a.id}.' if is_patch and isinstance(a, ast.Name) else ''

def made(
    src, # Source of an exported cell
)->list: # (name, kind), methods with their class
    "Public names that a cell makes"
    res = []
    def _see(body, pre=''):
        for o in body:
            if isinstance(o, ast.ClassDef):
                res.append((pre+o.name, 'class'))
                _see(o.body, f'{pre}{o.name}.')
            elif isinstance(o, ast.FunctionDef):
                to = pre or patched(o)
                res.append((to+o.name, 'method' if to else 'function'))
            elif isinstance(o, ast.Assign) and not pre:
                res.extend((n.id,'data') for t in o.targets for n in ast.walk(t) if isinstance(n, ast.Name))
    _see(ast.parse(re.sub(r'^[%!].*', '', src, flags=re.M)).body)
    return [(n,k) for n,k in res if not re.search(r'(^|\.)_', n)]

def on_parsed(app, doctree):
    "Each name that an exported cell makes is an object of the index, and the cell is its place"
    docname,py = app.env.docname,app.env.get_domain('py')
    if not (mod := modules.get(docname)): return
    py.note_object(mod, 'module', '')
    for c in doctree.findall(lambda o: 'tag_exported' in getattr(o, 'attributes', {}).get('classes', [])):
        for n,kind in made(next(c.findall(nodes.literal_block)).astext()):
            i = f'{mod}.{n}'
            if i in py.objects: continue
            c['ids'].append(i)
            py.note_object(i, kind, i)

def known(env):
    "Where a name stands that a page puts into backticks; one that two modules make has no place"
    res = {}
    for k,o in env.get_domain('py').objects.items():
        res[k] = (o.docname,o.node_id)
        mod = modules[o.docname]
        n = k.removeprefix(mod).lstrip('.')
        for a in {n, n.lower() if re.match(r'(objectives|pretext)/', o.docname) and o.objtype=='class' else n} - {''}:
            res[a] = None if a in res else (o.docname,o.node_id)
    for k,v in (o.split('=') for o in cfg['console_scripts'].split()): res[k] = res.get(v.replace(':','.'))
    for o in env.all_docs: res[f'nbs/{o}.ipynb'] = res[f'{o}.ipynb'] = res[f'{o.upper()}.md'] = (o,'')
    return {k:v for k,v in res.items() if v}

def on_resolved(app, doctree, docname):
    "Names in backticks become links"
    if not hasattr(app, 'names'): app.names = known(app.env)
    for o in list(doctree.findall(nodes.literal)):
        to = app.names.get(re.sub(r'\(.*\)$', '', o.astext(), flags=re.S))
        if not to or isinstance(o.parent, (nodes.reference,nodes.title)): continue
        uri = app.builder.get_relative_uri(docname, to[0]) + (to[1] and f'#{to[1]}')
        ref = nodes.reference('', '', internal=True, refuri=uri)
        o.replace_self(ref)
        ref += o

# Equations: MathML, which browsers draw themselves

def mathml(
    tex:str, # As it stands on the page
    block:bool, # On a line of its own?
)->str: # HTML
    "Docutils' MathML; it knows `\\bigl` and `\\bigr`, and here `\\big` learns which of them it is"
    tex = re.sub(r'\\([bB]igg?)\s*(?=\\?[(\[{]|\\l[a-zA-Z])', r'\\\1l', tex)
    tex = re.sub(r'\\([bB]igg?)(?![a-zA-Z])', r'\\\1r', tex)
    return tex2mathml(re.sub(r'\\dots\b', r'\\ldots', tex), as_block=block)

def visit(block):
    def _visit(self, node):
        try: out = mathml(node.astext().strip(), block)
        except MathError as e:
            logging.getLogger(__name__).warning('%s in the equation %s', e, node.astext(), location=node)
            out = self.encode(node.astext())
        self.body.append(f'<div class="math">{out}</div>' if block else out)
        raise nodes.SkipNode
    return _visit

def setup(app):
    app.add_html_math_renderer('mathml', (visit(False),None), (visit(True),None))
    app.connect('source-read', on_read)
    app.connect('doctree-read', on_parsed)
    app.connect('doctree-resolved', on_resolved)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
