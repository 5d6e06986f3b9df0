from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

digits = load_digits()
x = (digits.data / 16).astype("float32")
net = MLPClassifier((64, 32), max_iter=60, random_state=0).fit(x, digits.target)
model = to_onnx(net, x[:1], options={"zipmap": False})
with open("sklearn.onnx", "wb") as file:
    file.write(model.SerializeToString())
