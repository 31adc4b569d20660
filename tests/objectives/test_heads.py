"Heads layer by layer, and defaults, as papers and pages have them: what an equation's test, which takes the heads as they are, cannot see"
import inspect, pytest
from utils import *
from fastai_contrastive.objectives import *

L,B,N,R = 'Linear','Linear without bias','HeadNorm','ReLU'

def kinds(head):
    "What a head does, layer after layer; a norm without scale and shift is `N*`"
    def _kind(o): return (L if o.bias is not None else B) if isinstance(o, nn.Linear) else N+'*'*(not o.affine) if isinstance(o, nn.BatchNorm1d) else type(o).__name__
    return [_kind(o) for o in (head if isinstance(head, nn.Sequential) else [head])]

def widths(head): return [o.out_features for o in head.modules() if isinstance(o, nn.Linear)]

plain = [B,N,R,L]
heads = [
    (SimCLR, dict(projector=plain), dict(projector=[20,128])),
    (DCL, dict(projector=plain), dict(projector=[20,128])),
    (AlignUniform, dict(projector=plain), dict(projector=[20,128])),
    (SupCon, dict(projector=[L,R,L]), dict(projector=[20,128])),
    (MoCo, dict(projector=[L,R,L]), dict(projector=[20,128])),
    (ReSSL, dict(projector=[L,R,L]), dict(projector=[4096,512])),
    (DenseCL, dict(projector=[L,R,L], dense=[L,R,L]), dict(projector=[20,128], dense=[20,128])),
    (NNCLR, dict(projector=[B,N,R,B,N,R,B,N+'*'], predictor=plain), dict(projector=[2048,2048,256], predictor=[4096,256])),
    (MoCoV3, dict(projector=[B,N,R,B,N+'*'], predictor=[B,N,R,B,N+'*']), dict(projector=[4096,256], predictor=[4096,256])),
    (partial(MoCoV3, n_layers=3), dict(projector=[B,N,R,B,N,R,B,N+'*']), dict(projector=[4096,4096,256])),
    (PIRL, dict(projector=[L], piece=[L], joined=[L]), dict(projector=[128], piece=[128], joined=[128])),
    (TiCo, dict(projector=plain), dict(projector=[4096,256])),
    (WMSE, dict(projector=[B,N,R,B,N+'*']), dict(projector=[1024,32])),
    (LeJEPA, dict(projector=[B,N,R,B,N,R,L]), dict(projector=[2048,2048,64])),
    (SwAV, dict(projector=plain), dict(projector=[20,128])),
    (CMC, dict(luma=[L], chroma=[L]), dict(luma=[128], chroma=[128])),
]

@pytest.mark.parametrize('cls,want,sizes', heads, ids=lambda o: getattr(o, '__name__', None) if inspect.isclass(o) else '')
def test_heads(cls, want, sizes):
    obj = cls()
    obj.n_items = 8
    obj.build(20)
    for k,v in want.items(): assert kinds(getattr(obj, k))==v, k
    for k,v in sizes.items(): assert widths(getattr(obj, k))==v, k

published = [
    (DCL, dict(temp=.1)), (DCLW, dict(sigma=.5)), (SupCon, dict(temp=.1)), (AlignUniform, dict(alpha=2., t=2., align=1., uniform=1.)),
    (NNCLR, dict(temp=.1, queue_size=98304)), (MoCo, dict(temp=.2, momentum=.999)), (MoCoV3, dict(temp=.2, momentum=.99, momentum_end=1.)),
    (PIRL, dict(temp=.07, lambd=.5, momentum=.5, grid=3)), (ReSSL, dict(temp=.1, teacher_temp=.04, momentum=.999)), (BYOL, dict(momentum=.996, momentum_end=1.)),
    (BarlowTwins, dict(lambd=.0051)), (VICReg, dict(inv=25., var=25., cov=1.)), (TiCo, dict(rho=8., beta=.9, momentum=.99)), (LeJEPA, dict(lambd=.05, knots=17)),
    (SwAV, dict(temp=.1, eps=.05, iters=3, n_prototypes=3000, queue_size=3840, queue_start=15, freeze=1)),
    (DINO, dict(temp=.1, warmup_temp=.04, momentum=.996, center_momentum=.9, hidden=2048, bottleneck=256, freeze=1)), (CPC, dict(overlap=.5, directions=4)),
    (DenseCL, dict(temp=.2, lambd=.5, momentum=.999)), (CMC, dict(temp=.07)),
]

@pytest.mark.parametrize('cls,want', published, ids=lambda o: getattr(o, '__name__', ''))
def test_defaults(cls, want):
    got = inspect.signature(cls.__init__).parameters
    assert {k:got[k].default for k in want}==want

@pytest.mark.parametrize('cls', [BYOL,BarlowTwins,VICReg,MoCoV3,TiCo])
def test_views_of_byol(cls):
    v = cls().views(48)
    assert (v.n,v.size,v.saturation,v.p_blur,v.p_solarize)==(2,48,.2,(1.,.1),(0.,.2)) and v.scale==((.08,1.) if cls is TiCo else (.2,1.))
