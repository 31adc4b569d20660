"CMC against its equation; encoders of two halves; and their files"
import forked, math, pytest
from utils import *
from fastai_contrastive.encoder import *
from fastai_contrastive.encoder import SplitBody
from fastai_contrastive.objectives.cmc import *
from fastai_contrastive.pretext.core import *
from fastai_contrastive.pretext.rotation import *
from fastai_contrastive.views import channel_split

def by_hand(a, b, temp):
    total,n = 0.,len(a)
    sim = lambda u,v: math.exp((u@v/(u.norm()*v.norm())).item()/temp)
    for p,q in ((a,b),(b,a)):
        for i in range(n): total -= math.log(sim(p[i],q[i])/sum(sim(p[i],q[j]) for j in range(n)))/n
    return total

def ready(**kwargs):
    torch.manual_seed(0)
    obj = CMC(dim=5, **kwargs)
    enc = obj.prepare(create_encoder(plain_body()))
    return obj.set_up(enc).train(),enc.train()

@pytest.mark.parametrize('n,temp', [(2,.07), (5,.2), (9,1.)])
def test_term_is_the_papers(n, temp):
    "From images to the loss; the first half of the features is brightness', the second colour's"
    obj,enc = ready(temp=temp)
    views = [torch.randn(n,3,16,16) for _ in range(2)]
    want = []
    for x in views:
        y = (x*torch.tensor([.299,.587,.114])[:,None,None]).sum(1, keepdim=True)
        c = torch.stack([-.450*x[:,0]-.883*x[:,1]+1.333*x[:,2], -1.333*x[:,0]+1.116*x[:,1]+.217*x[:,2]], 1)
        want.append(by_hand(obj.luma(enc.body.luma(y)).double(), obj.chroma(enc.body.chroma(c)).double(), temp))
    assert abs(obj(enc, views[:1]).item()-want[0])<1e-4*want[0] and abs(obj(enc, views).item()-sum(want)/2)<1e-4*want[0]

def test_views_leave_the_colours():
    x,_ = images(6)
    v, = CMC().views().but(scale=None, p_flip=0.)(x)
    assert torch.allclose(v, x, atol=1e-5)
    assert not any(getattr(CMC().views(), k) for k in ('p_jitter','p_grey','p_blur','p_solarize'))

def test_an_ordinary_encoder_is_refused_and_told_what_to_do():
    for learn in (finetune_learner(make_dls(size=32), create_encoder(plain_body()), n_out=4, loss_func=CrossEntropyLossFlat(), cbs=ContrastiveCallback(CMC())),
                  pretext_learner(make_dls(size=32), create_encoder(plain_body()), Rotation(), cbs=ContrastiveCallback(CMC()))):
        with pytest.raises(ValueError, match=r"cmc needs an encoder of two halves.*got Sequential; pass create_encoder\('split:NAME'\)"): fit(learn)

def test_beside_a_task_by_name():
    learn = pretext_learner(make_dls(size=32), 'split:xresnet18', Rotation(), cbs=ContrastiveCallback(CMC(dim=4)))
    was = ws(learn.model[0])
    fit(learn)
    assert learn.recorder.metric_names[-2]=='cmc_loss' and np.isfinite(learn.recorder.values[-1][-1]) and isinstance(learn.model[0].body, SplitBody)

def test_a_trained_encoder_opens_in_a_new_process_with_the_same_features(tmp_path):
    enc = create_encoder('xresnet18', widen=.125)
    learn = fit(contrastive_learner(make_dls(size=32), enc, CMC(dim=4)))
    x = torch.randn(2,3,32,32)
    fn = save_encoder(learn, tmp_path/'e')
    torch.save(x, tmp_path/'x.pt')
    code = f"import torch; from fastai_contrastive.encoder import *; e = load_encoder(r'{fn}').eval(); torch.save((e(torch.load(r'{tmp_path}/x.pt')).detach(), e.nf, e.arch), r'{tmp_path}/f.pt')"
    r = forked.code(code)
    assert r.returncode==0, r.stderr
    f,nf,arch = torch.load(tmp_path/'f.pt')
    assert torch.allclose(f, learn.model[0].eval()(x), atol=1e-5) and (nf,arch)==(2*enc.nf,'split:xresnet18')

def test_bad_settings():
    with pytest.raises(ValueError, match='temp must be above 0'): CMC(temp=0)
