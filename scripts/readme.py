"Make README.md from nbs/index.ipynb: `python scripts/readme.py`"
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]
_directive = re.compile(r'^#\|[^\n]*\n?', re.M)

def directives(
    c, # Cell of a notebook
)->set: # What follows each `#|`
    "nbdev's directives in a cell"
    return {o[2:].strip() for o in c.source.splitlines() if o.startswith('#|')} if c.cell_type=='code' else set()

def shown(
    c, # Cell of a notebook; changed in place
): # The cell without its directives; None where the reader is not meant to see it
    "What a reader sees of a cell, in the README and in the documentation"
    ds = directives(c)
    if ds & {'hide', 'include: false'}: return
    if c.cell_type=='code':
        c.source = _directive.sub('', c.source).strip()
        if 'echo: false' in ds: c.metadata.transient = {'remove_source': True}
        if 'output: false' in ds: c.outputs = []
        if not c.source: return
    return c

def _no_picture(c):
    for o in c.get('outputs', []):
        if 'image/png' in o.get('data', {}):
            raise ValueError(f'Cell {c.id} of the index puts out an image: '
                             'save it in nbs/images and show it as ![](images/name.png) instead')
    return c

def readme(
    nb=root/'nbs/index.ipynb', # Notebook to convert
)->str: # Markdown whose pictures are found from the repository's root
    "The README that `nb` makes"
    nb = nbformat.read(nb, as_version=4)
    nb.cells = [_no_picture(c) for c in map(shown, nb.cells) if c]
    nb.metadata.language_info = {'name': 'python'}
    md,_ = MarkdownExporter().from_notebook_node(nb)
    md = re.sub(r'(\]\(|src=")images/', r'\1nbs/images/', md)
    md = re.sub(r'(\]\()(?!https?:|nbs/|#|mailto:|/)([^)\s]+\.(?:ipynb|md))', r'\1nbs/\2', md)
    return re.sub(r'\n{3,}', '\n\n', md).strip()+'\n'

if __name__=='__main__': (root/'README.md').write_text(readme(), encoding='utf-8')
