"Break each module's `__all__` at 120 characters, where nbdev breaks it at 130: `python scripts/wrap_all.py [FOLDER]`"
import re, sys
from pathlib import Path
from textwrap import TextWrapper

_wrap = TextWrapper(width=120, subsequent_indent=' '*11, break_long_words=False)

def wrap_all(
    lib, # Folder with the modules
):
    "Rewrite the modules in `lib` whose `__all__` is too wide"
    for f in sorted(Path(lib).rglob('*.py')):
        src = f.read_text(encoding='utf-8')
        m = re.search(r'^__all__ = \[.*?\]$', src, re.M|re.S)
        if not m or f.name=='_modidx.py': continue
        new = src[:m.start()] + _wrap.fill(' '.join(m[0].split())) + src[m.end():]
        if new!=src: f.write_text(new, encoding='utf-8')

if __name__=='__main__': wrap_all(*sys.argv[1:] or [Path(__file__).resolve().parents[1]/'fastai_contrastive'])
