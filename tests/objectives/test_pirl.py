"PIRL against its equations, and its memory after several steps"
import math, pytest
from utils import *
from fastai_contrastive.encoder import create_encoder
from fastai_contrastive.objectives.pirl import *
from fastai_contrastive.views import patch_grid

def cos(a, b): return (a@b/(a.norm()*b.norm())).item()

def by_hand(q, m, negs, temp, own=None):
    "-log h(q, m) - sum of log(1 - h(q, m')), one image at a time"
    total = 0.
    for i in range(len(q)):
        js = [j for j in range(len(negs)) if own is None or not own[i,j]]
        e0 = math.exp(cos(q[i], m[i])/temp)
        es = [math.exp(cos(q[i], negs[j])/temp) for j in js]
        den = e0+sum(es)
        total += -math.log(e0/den) - sum(math.log(1-e/den) for e in es)
    return total/len(q)

@pytest.mark.parametrize('n,j,temp', [(1,2,.07), (3,5,.07), (7,40,.5), (4,3,2.)])
def test_loss_is_the_papers(n, j, temp):
    torch.manual_seed(n)
    q,m,negs = torch.randn(n,6),torch.randn(n,6)*3,torch.randn(j,6)*.1
    own = torch.zeros(n, j, dtype=torch.bool)
    own[0,1] = True
    for o in (None,own):
        assert abs(pirl_nce(q, m, negs, temp, o).item() - by_hand(q.double(), m.double(), negs.double(), temp, o))<1e-5*max(1, n*j)

def test_a_sure_mistake_is_finite_and_its_gradient_has_a_direction():
    "1-p is 0 in float32 when a negative is certain"
    q = torch.eye(4)[:1].requires_grad_()
    m,negs = -torch.eye(4)[:1]+.1*torch.eye(4)[1:2],torch.stack([torch.eye(4)[0], -torch.eye(4)[0]])
    c = pirl_nce(q, m, negs, .03)
    c.backward()
    assert 60<c.item()<140 and torch.isfinite(q.grad).all() and q.grad.abs().sum()>1

def ready(n_items=20, enc=None, **kwargs):
    torch.manual_seed(0)
    obj,enc = PIRL(dim=5, **kwargs),enc or create_encoder(plain_body())
    obj.n_items = n_items
    return obj.set_up(enc).train(),enc.train()

def test_memory_is_an_average_of_directions_of_the_image_itself():
    obj,enc = ready(momentum=.8)
    mem,met = obj.memory.clone().double(),set()
    for s in range(3):
        x = torch.randn(4,3,16,16)
        obj.ids = torch.tensor([3,0,19,s+5])
        f = obj.projector(enc(x)).detach().double()
        before = obj.memory.clone()
        obj(enc, [x, torch.randn(4,3,16,16)]).backward()
        assert not torch.equal(before, obj.memory)
        for r,i in enumerate(obj.ids.tolist()):
            u = f[r]/f[r].norm()
            v = .8*mem[i] + .2*u if i in met else u
            mem[i] = v/v.norm()
            met.add(i)
    assert torch.allclose(obj.memory.double(), mem, atol=1e-5)

@pytest.mark.parametrize('transform', ['jigsaw','rotation'])
def test_the_last_view_is_transformed_and_has_heads_of_its_own(transform):
    obj,enc = ready(transform=transform)
    views,got = [torch.randn(2,3,16,16) for _ in range(2)],{}
    obj.transformed = lambda e,x: got.update(x=x) or torch.ones(2,5)
    obj.loss = lambda z,t,y: got.update(f=z[0])
    obj(enc, views)
    assert got['x'] is views[1] and torch.allclose(got['f'], obj.projector(enc(views[0])), atol=1e-5)
    heads = [obj.projector,obj.joined,*([obj.piece] if transform=='jigsaw' else [])]
    assert len({id(p) for h in heads for p in h.parameters()})==sum(len(list(h.parameters())) for h in heads)

def test_memory_stands_still_in_validation_and_ids_may_be_missing():
    obj,enc = ready()
    was,x = obj.memory.clone(),torch.randn(4,3,16,16)
    obj.ids = torch.arange(4)
    obj.eval()
    assert torch.isfinite(obj(enc, [x]))
    obj.ids = None
    for training in (False,True): assert torch.isfinite(obj.train(training)(enc, [x]))
    assert torch.equal(was, obj.memory)

def test_term_is_weighed_and_an_image_is_no_negative_of_its_own():
    torch.manual_seed(1)
    obj,_ = ready(lambd=.3, temp=.2)
    obj.ids,f,g = torch.tensor([2,7,7]),torch.randn(3,5),torch.randn(3,5)
    obj.eval()
    obj.met[[2,7]] = True
    want = 0.
    for w,o in ((.3,g),(.7,f)):
        for i,k in enumerate(obj.ids.tolist()):
            others = obj.memory[[j for j in range(20) if j!=k]].double()
            want += w*by_hand(o[i:i+1].double(), obj.memory[k:k+1].double(), others, .2)/3
    assert abs(obj.loss((f,g), None, None).item()-want)<1e-4

def test_an_image_that_is_new_stands_in_for_its_row():
    obj,_ = ready(lambd=1.)
    obj.ids,f,g = torch.tensor([2,7]),torch.randn(2,5),torch.randn(2,5)
    obj.eval()
    obj.met[7] = True
    want = sum(by_hand(g[i:i+1].double(), m[None].double(), obj.memory[[j for j in range(20) if j!=k]].double(), .07)/2 for i,k,m in ((0,2,f[0]),(1,7,obj.memory[7])))
    assert abs(obj.loss((f,g), None, None).item()-want)<1e-4*want

def test_negatives_are_drawn():
    obj,_ = ready(n_items=500, n_neg=9, temp=1.)
    obj.ids,z = torch.arange(3),torch.randn(3,5)
    obj.eval()
    vals = {round(obj.loss((z,z), None, None).item(), 5) for _ in range(4)}
    assert len(vals)==4

def test_order_of_the_pieces_is_random_and_differs_between_images():
    "The pieces of a view of one colour each, by an encoder that gives back the colour"
    enc = create_encoder(nn.Conv2d(3,3,1,bias=False))
    with torch.no_grad(): enc.body.weight.copy_(torch.eye(3)[:,:,None,None])
    obj,_ = ready(enc=enc, patch_size=8)
    obj.piece = nn.Linear(3,1,bias=False)
    nn.init.ones_(obj.piece.weight)
    obj.joined = nn.Identity()
    x = torch.arange(9.).view(1,1,3,3).repeat_interleave(8,2).repeat_interleave(8,3).expand(6,3,-1,-1)
    z = obj.transformed(enc, x)
    assert torch.allclose(z.sort(1).values, 3*torch.arange(9.).expand(6,-1), atol=1e-4)
    assert len({tuple(o.round().tolist()) for o in z})>4

def test_rotation_turns_by_all_quarters():
    enc = create_encoder(plain_body())
    obj,_ = ready(enc=enc, transform='rotation')
    seen = []
    obj.joined = nn.Identity()
    x = torch.randn(1,3,16,16)
    turns = [enc(x.rot90(k,(2,3))) for k in range(4)]
    z = obj.transformed(enc, x.expand(40,-1,-1,-1))
    which = torch.stack([(z-t).abs().amax(1) for t in turns]).argmin(0)
    assert set(which.tolist())=={0,1,2,3} and all((z[i]-turns[k][0]).abs().max()<1e-4 for i,k in enumerate(which))
    with pytest.raises(ValueError, match='square views only'): obj.transformed(enc, torch.randn(2,3,16,24))

@pytest.mark.parametrize('ps,h,want', [(None,32,16), (None,224,80), (24,32,24)])
def test_size_of_the_pieces(ps, h, want):
    obj,enc = ready(patch_size=ps)
    assert obj.pieces(enc, torch.randn(2,3,h,h)).shape==(18,3,want,want)

def test_pieces_fit_a_vit():
    pytest.importorskip('timm')
    enc = create_encoder('test_vit', patch_size=32, depth=1)
    obj,_ = ready(enc=enc)
    assert obj.pieces(enc, torch.randn(1,3,64,64)).shape[-1]==32

@pytest.mark.parametrize('kwargs,msg', [(dict(transform='blur'),"transform must be 'jigsaw' or 'rotation'"), (dict(temp=0),'temp must be above 0'),
    (dict(lambd=2),'from 0 to 1'), (dict(momentum=-1),'from 0 to 1'), (dict(n_neg=1),'n_neg and grid'), (dict(grid=1),'n_neg and grid')])
def test_bad_settings(kwargs, msg):
    with pytest.raises(ValueError, match=msg): PIRL(**kwargs)

def test_it_says_what_is_missing():
    with pytest.raises(ValueError, match='set n_items'): PIRL().build(4)
    obj,enc = ready()
    obj.ids = torch.tensor([1,25])
    with pytest.raises(ValueError, match='remembers 20 images.*new PIRL'): obj(enc, [torch.randn(2,3,16,16)])
    fixed = create_encoder(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48,4)))
    ready(enc=fixed)
    with pytest.raises(ValueError, match='pirl cuts images.*encoder'): ready(enc=create_encoder(nn.Sequential(nn.Flatten(), nn.Linear(3*64*64,4))))
    ready(enc=create_encoder(nn.Sequential(nn.Flatten(), nn.Linear(3*64*64,4))), transform='rotation')

def test_other_data_is_refused_before_the_first_batch():
    "Fewer images would be taken for the first ones of the memory"
    obj = PIRL(dim=8, n_neg=4)
    learn = fit(make_learn(term(objective=obj, views=None), make_dls(16, size=32)))
    for n in (12,20):
        with pytest.raises(ValueError, match=f'pirl remembers 16 images: the loader has {n}; use a new PIRL'): fit(make_learn(term(objective=obj, views=throw(KeyError())), make_dls(n, size=32)))
    fit(make_learn(term(objective=obj, views=None), make_dls(16, size=32), learn.model))
