"The published tables are what the published rows say."
import importlib.util, json
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[1]
results = root/'nbs/results'
runs = sorted(o for o in results.glob('imagewang-*') if o.is_dir())

def script():
    spec = importlib.util.spec_from_file_location('imagewang_results', results/'imagewang.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

@pytest.mark.parametrize('run', runs, ids=lambda o: o.name)
def test_readme_table(run): assert script().table(run) in (root/'README.md').read_text(encoding='utf-8')

@pytest.mark.parametrize('run', runs, ids=lambda o: o.name)
def test_rows_are_comparable(run):
    "Every row of a table was pretrained on the same images, with the same steps and the same fine-tuning"
    rows = [json.loads(o.read_text()) for o in sorted(run.glob('*.json'))]
    assert rows
    same = ('size','bs','arch','arch_args','epochs','lr','n_images','ft_epochs','ft10_epochs','ft_lr','short_side','board_labels','imagenette10_labels','commit')
    for k in same: assert len({json.dumps(o[k]) for o in rows})==1, k
    assert len({(o['pretrain']['images'],o['pretrain']['steps']) for o in rows if 'pretrain' in o})<=1
    assert len({(o['row'],o['seed']) for o in rows})==len(rows)
    assert not any(o['commit'].endswith('+') or o['commit']=='unknown' for o in rows), 'rows must come from a committed state'
