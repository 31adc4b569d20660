"SupCon against the paper's equation 2, with labels missing"
import math, pytest, torch
from utils import *
from fastai_contrastive.objectives.supcon import *

def by_hand(views, y, temp):
    "Equation 2 of arXiv 2004.11362 (outside the log), pair by pair; an image without a label has its other views"
    rows = [(v[i]/v[i].norm(),i,int(y[i])) for v in views for i in range(len(y))]
    total = 0.
    for a,(z,i,c) in enumerate(rows):
        others = [b for b in range(len(rows)) if b!=a]
        partners = [b for b in others if rows[b][1]==i or (c>=0 and rows[b][2]==c)]
        den = sum(math.exp(float(z@rows[b][0])/temp) for b in others)
        total += -sum(float(z@rows[b][0])/temp-math.log(den) for b in partners)/len(partners)
    return total/len(rows)

@pytest.mark.parametrize('y', [[0,0,1,1,2], [0,0,0,0,0,0], [3,-1,3,-1,-1,5,0], [-1,-1,-1]])
@pytest.mark.parametrize('n_views', [2,3])
@pytest.mark.parametrize('temp', [.1,.7])
def test_loss(y, n_views, temp):
    views,y = [torch.randn(len(y),9)*(k+1) for k in range(n_views)],tensor(y)
    want = by_hand([v.double() for v in views], y, temp)
    assert abs(SupCon(temp=temp).loss(views, None, y).item()-want)<1e-5*max(1, want)

def test_labels_are_left_alone():
    "-1 is replaced in a copy; the batch's own labels go on to the task"
    y = tensor([0,-1,0,-1])
    SupCon().loss([torch.randn(4,6),torch.randn(4,6)], None, y)
    assert y.tolist()==[0,-1,0,-1]

@pytest.mark.parametrize('dtype', [torch.uint8,torch.int32])
def test_any_whole_numbers(dtype):
    "Also unsigned ones, which hold no -1"
    z,y = [torch.randn(4,6),torch.randn(4,6)],tensor([0,1,0,1])
    assert SupCon().loss(z, None, y.to(dtype))==SupCon().loss(z, None, y)

def test_missing_labels_of_fastai():
    "`#na#`, class 0 of a vocabulary with `add_na`, is a missing label: three unlabelled images are no class"
    class Seen(Callback):
        def before_batch(self): ys.append(self.learn._grab_cbs(ContrastiveCallback)[0]._y.tolist())
    ys = []
    ds = [(TensorImage(x),TensorCategory(c)) for x,c in zip(images(8)[0], [0,1,2,0,1,2,0,3])]
    dls = DataLoaders.from_dsets(ds, ds, bs=8, shuffle=False, device='cpu', num_workers=0)
    dls.vocab = CategoryMap(['a','b','c'], add_na=True)
    learn = contrastive_learner(dls, body(), SupCon(dim=6), views=two_views, cbs=Seen())
    fit(learn)
    assert ys[0]==[-1,1,2,-1,1,2,-1,3]

def test_head_has_no_batch_norm():
    o = built(SupCon(dim=5, hidden=7))
    assert not [m for m in o.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [tuple(m.weight.shape) for m in o.projector if isinstance(m, nn.Linear)]==[(7,12),(5,7)]

def test_errors():
    z = [torch.randn(4,6),torch.randn(4,6)]
    with pytest.raises(ValueError, match='temp must be above 0: got 0'): SupCon(temp=0)
    with pytest.raises(ValueError, match=r'supcon needs one class per image.*\(4, 3\)'): SupCon().loss(z, None, torch.ones(4,3).long())
    with pytest.raises(ValueError, match='supcon needs one class per image.*float'): SupCon().loss(z, None, torch.ones(4))
    with pytest.raises(ValueError, match='supcon needs labels'): built(SupCon(dim=6))(None, [torch.randn(4,3,8,8)]*2, None)
