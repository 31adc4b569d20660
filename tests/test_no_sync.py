"""No step waits for the device: passes of every objective on a `cuda` that is not there.

Under `FakeTensorMode` tensors have shapes and devices and no numbers. To read one back raises, and so does a tensor on the
wrong device: what would make a graphics card wait at every step cannot hide."""
import torch, pytest
from torch._subclasses.fake_tensor import FakeTensorMode
from fastai_contrastive.encoder import create_encoder
from fastai_contrastive import objectives # noqa: they register themselves
from fastai_contrastive.objective import Objective

FakeTensorMode.__deepcopy__ = lambda self, memo: self # A copy of a tensor would bring a mode of its own
mode = FakeTensorMode() # One for all: constants are kept from call to call

def fake_views(obj, x):
    views = obj.views()
    views.mean,views.std,views._seen = (0.,),(1.,),True # As after the first batch
    if x.ndim==4: return views(x)
    return [v.unflatten(0, x.shape[:2]) for v in views(x.flatten(0,1))]

def fake_pass(name, size=32):
    "Two passes of an objective, with what memories and teacher do after each"
    n = 40 if name=='wmse' else 8
    with mode, torch.device('cuda'):
        obj = Objective.registry[name]()
        enc = obj.prepare(create_encoder('xresnet_narrow', nf=16, blocks=1)).train()
        x,obj.n_items = torch.rand(*((n,4) if obj.takes=='clips' else (n,)), 3, size, size),64
        obj.set_up(enc).train()
        for i in range(2):
            obj.ids,obj.pct_train,obj.epoch = torch.arange(n),.1*i,5*i
            with obj.held(): loss = obj(enc, fake_views(obj, x), torch.randint(3, (n,)))
            obj.after_step(enc)
        return loss

@pytest.mark.parametrize('name', sorted(Objective.registry))
def test_no_number_is_read_back(name, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, 'to', lambda self, *a, **k: self) # All of it is there already
    # Which images these are the loader says, on the host: there numbers may be looked at
    if name=='pirl': monkeypatch.setattr(Objective.registry['pirl'], '_rows', lambda self, f: self.ids)
    loss = fake_pass(name, size=64 if name=='cpc' else 32)
    assert loss.device.type=='cuda' and loss.shape==()

def test_the_test():
    "What it is for"
    with mode, pytest.raises(Exception, match='local_scalar'): torch.rand(3, device='cuda').sum().item()
    with mode, pytest.raises(Exception, match='(?i)device'): torch.rand(3, device='cuda')+torch.rand(3)
