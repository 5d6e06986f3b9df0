import tensorflow as tf
import tf2onnx

tf.random.set_seed(0)
net = tf.keras.Sequential(
    [
        tf.keras.layers.Input((32, 32, 3), name="input"),
        tf.keras.layers.Conv2D(16, 3, padding="same", use_bias=False),
        tf.keras.layers.BatchNormalization(),
        tf.keras.layers.ReLU(),
        tf.keras.layers.Conv2D(32, 3, strides=2, padding="same"),
        tf.keras.layers.ReLU(),
        tf.keras.layers.GlobalAveragePooling2D(),
        tf.keras.layers.Dense(10, name="logits"),
    ]
)
forward = tf.function(lambda x: net(x, training=False))
signature = [tf.TensorSpec((None, 32, 32, 3), tf.float32, name="input")]
tf2onnx.convert.from_function(forward, input_signature=signature, opset=17, output_path="keras.onnx")
