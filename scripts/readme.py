"Make README.md from nbs/index.ipynb: `python scripts/readme.py`"
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parents[1]
_directive = re.compile(r'^#\|[^\n]*\n?', re.M)

def _directives(c): return {o[2:].strip() for o in c.source.splitlines() if o.startswith('#|')} if c.cell_type=='code' else set()

def _shown(
    c, # Cell of the notebook
): # The cell without its directives; None where the reader is not meant to see it
    "What the README shows of a cell"
    ds = _directives(c)
    if ds & {'hide', 'include: false'}: return
    if c.cell_type=='code':
        for o in c.outputs:
            if 'image/png' in o.get('data', {}):
                raise ValueError(f'Cell {c.id} of the index puts out an image: save it in nbs/images and show it as ![](images/name.png) instead')
        c.source = _directive.sub('', c.source).strip()
        if 'echo: false' in ds: c.metadata.transient = {'remove_source': True}
        if 'output: false' in ds: c.outputs = []
        if not c.source: return
    return c

def readme(
    nb=root/'nbs/index.ipynb', # Notebook to convert
)->str: # Markdown whose pictures are found from the repository's root
    "The README that `nb` makes"
    nb = nbformat.read(nb, as_version=4)
    nb.cells = [c for c in map(_shown, nb.cells) if c]
    nb.metadata.language_info = {'name': 'python'}
    md,_ = MarkdownExporter().from_notebook_node(nb)
    md = re.sub(r'(\]\(|src=")images/', r'\1nbs/images/', md)
    md = re.sub(r'(\]\()(?!https?:|nbs/|#|mailto:|/)([^)]+\.ipynb)', r'\1nbs/\2', md)
    return re.sub(r'\n{3,}', '\n\n', md).strip()+'\n'

if __name__=='__main__': (root/'README.md').write_text(readme(), encoding='utf-8')
