"""A compact PyTorch form of BiRefNet (arXiv 2401.03407) with a Swin backbone, for comparisons: `load(folder)` gives a function
from a tensor [1, 3, height, width] to logits. Sizes are those of the tensors. Needs torch, torchvision and safetensors."""
import math
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torchvision.ops import deform_conv2d


def load(folder):
    return Network(load_file(os.path.join(folder, "model.safetensors")))


class Network:
    def __init__(self, tensors):
        self.tensors = tensors
        self.num_stages = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("bb.layers."))
        self.depths = [1 + max(int(name.split(".")[4]) for name in tensors if name.startswith("bb.layers.%d.blocks." % stage))
                       for stage in range(self.num_stages)]
        table = tensors["bb.layers.0.blocks.0.attn.relative_position_bias_table"]
        self.window = (math.isqrt(table.shape[0]) + 1) // 2
        # What does not depend on the picture is computed once, as the layers of a module would.
        self.biases, self.norms = {}, {}

    def weights(self, name):
        return self.tensors[name + ".weight"], self.tensors.get(name + ".bias")

    def conv(self, x, name, padding=0, stride=1):
        weight, bias = self.weights(name)
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)

    def linear(self, x, name):
        return F.linear(x, *self.weights(name))

    def layer_norm(self, x, name):
        weight, bias = self.weights(name)
        return F.layer_norm(x, weight.shape, weight, bias, 1e-5)

    def batch_norm(self, x, name):
        weight, bias = self.weights(name)
        return F.batch_norm(x, self.tensors[name + ".running_mean"], self.tensors[name + ".running_var"], weight, bias)

    @staticmethod
    def like(x, other):
        return F.interpolate(x, size=other.shape[-2:], mode="bilinear", align_corners=True)

    def position_bias(self, name, heads):
        if name not in self.biases:
            side = self.window
            places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
            apart = places[:, :, None] - places[:, None, :] + (side - 1)
            index = apart[0] * (2 * side - 1) + apart[1]
            table = self.tensors[name + ".relative_position_bias_table"]
            bias = table[index.flatten()].view(side * side, side * side, heads).permute(2, 0, 1)
            self.biases[name] = bias.contiguous()
        return self.biases[name]

    def mask(self, height, width, shift):
        key = (height, width)
        if key not in self.biases:
            side = self.window
            label = lambda size: (torch.arange(size) >= size - side).long() + (torch.arange(size) >= size - shift).long()
            labels = label(height)[:, None] * 3 + label(width)[None, :]
            labels = labels.view(height // side, side, width // side, side).permute(0, 2, 1, 3).reshape(-1, side * side)
            self.biases[key] = (labels[:, None, :] != labels[:, :, None]).float() * -100.0
        return self.biases[key]

    def block(self, x, height, width, name, shift):
        batch, length, channels = x.shape
        side = self.window
        heads = self.tensors[name + ".attn.relative_position_bias_table"].shape[1]
        h = self.layer_norm(x, name + ".norm1").view(batch, height, width, channels)
        h = F.pad(h, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = h.shape[1:3]
        if shift:
            h = torch.roll(h, (-shift, -shift), (1, 2))
        h = h.view(batch, rows // side, side, columns // side, side, channels)
        h = h.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, channels)
        q, k, v = self.linear(h, name + ".attn.qkv").view(-1, side * side, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
        bias = self.position_bias(name + ".attn", heads)[None]
        if shift:
            bias = bias + self.mask(rows, columns, shift)[:, None]
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(-1, side * side, channels)
        h = self.linear(h, name + ".attn.proj")
        h = h.view(batch, rows // side, columns // side, side, side, channels).permute(0, 1, 3, 2, 4, 5)
        h = h.reshape(batch, rows, columns, channels)
        if shift:
            h = torch.roll(h, (shift, shift), (1, 2))
        x = x + h[:, :height, :width].reshape(batch, length, channels)
        inner = F.gelu(self.linear(self.layer_norm(x, name + ".norm2"), name + ".mlp.fc1"))
        return x + self.linear(inner, name + ".mlp.fc2")

    def merge(self, x, height, width, name):
        x = x.view(x.shape[0], height, width, -1)
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.linear(self.layer_norm(x.flatten(1, 2), name + ".norm"), name + ".reduction")

    def swin(self, x):
        x = self.conv(x, "bb.patch_embed.proj", stride=4)
        height, width = x.shape[2:]
        x = self.layer_norm(x.flatten(2).transpose(1, 2), "bb.patch_embed.norm")
        maps = []
        for stage in range(self.num_stages):
            name = "bb.layers.%d" % stage
            for index in range(self.depths[stage]):
                x = self.block(x, height, width, "%s.blocks.%d" % (name, index), (self.window // 2) * (index % 2))
            out = self.layer_norm(x, "bb.norm%d" % stage)
            maps.append(out.transpose(1, 2).reshape(out.shape[0], -1, height, width))
            if stage + 1 < self.num_stages:
                x = self.merge(x, height, width, name + ".downsample")
                height, width = (height + 1) // 2, (width + 1) // 2
        return maps

    def deform(self, x, name):
        weight, bias = self.weights(name + ".regular_conv")
        padding = weight.shape[-1] // 2
        offset = self.conv(x, name + ".offset_conv", padding)
        mask = 2 * torch.sigmoid(self.conv(x, name + ".modulator_conv", padding))
        return deform_conv2d(x, offset, weight, bias, padding=padding, mask=mask)

    def pyramid(self, x, name):
        names = [name + ".aspp1"]
        while "%s.aspp_deforms.%d.bn.weight" % (name, len(names) - 1) in self.tensors:
            names.append("%s.aspp_deforms.%d" % (name, len(names) - 1))
        parts = [F.relu(self.batch_norm(self.deform(x, part + ".atrous_conv"), part + ".bn")) for part in names]
        mean = self.conv(x.mean((2, 3), keepdim=True), name + ".global_avg_pool.1")
        parts.append(self.like(F.relu(self.batch_norm(mean, name + ".global_avg_pool.2")), x))
        return F.relu(self.batch_norm(self.conv(torch.cat(parts, 1), name + ".conv1"), name + ".bn1"))

    def decoder(self, x, name):
        x = F.relu(self.batch_norm(self.conv(x, name + ".conv_in", 1), name + ".bn_in"))
        x = self.pyramid(x, name + ".dec_att")
        return self.batch_norm(self.conv(x, name + ".conv_out", 1), name + ".bn_out")

    def image_branch(self, image, other, name):
        height, width = other.shape[-2:]
        batch, colours, rows, columns = image.shape
        tiles = image.view(batch, colours, rows // height, height, columns // width, width)
        tiles = tiles.permute(0, 4, 2, 1, 3, 5).reshape(batch, -1, height, width)
        return self.conv(self.conv(tiles, name + ".conv1", 1), name + ".conv_out", 1)

    def gate(self, x, level):
        inner = F.relu(self.batch_norm(self.conv(x, "decoder.gdt_convs_%d.0" % level, 1), "decoder.gdt_convs_%d.1" % level))
        return x * torch.sigmoid(self.conv(inner, "decoder.gdt_convs_attn_%d.0" % level))

    def __call__(self, image):
        whole = self.swin(image)
        size = (image.shape[2] // 2, image.shape[3] // 2)
        half = self.swin(F.interpolate(image, size=size, mode="bilinear", align_corners=True))
        x1, x2, x3, x4 = [torch.cat([a, self.like(b, a)], 1) for a, b in zip(whole, half)]
        x4 = torch.cat([self.like(x1, x4), self.like(x2, x4), self.like(x3, x4), x4], 1)
        x4 = self.decoder(x4, "squeeze_module.0")
        x = torch.cat([x4, self.image_branch(image, x4, "decoder.ipt_blk5")], 1)
        for level, skip in ((4, x3), (3, x2), (2, x1)):
            x = self.gate(self.decoder(x, "decoder.decoder_block%d" % level), level)
            x = self.like(x, skip) + self.conv(skip, "decoder.lateral_block%d.conv" % level)
            x = torch.cat([x, self.image_branch(image, skip, "decoder.ipt_blk%d" % level)], 1)
        x = self.decoder(x, "decoder.decoder_block1")
        x = torch.cat([self.like(x, image), self.image_branch(image, image, "decoder.ipt_blk1")], 1)
        return self.conv(x, "decoder.conv_out1.0")
