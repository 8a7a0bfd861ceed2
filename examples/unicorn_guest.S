# A bare-metal guest for unicorn_pci.py: finds the VirtFS function on PCI bus 0 through configuration mechanism 1, places and
# enables it, and prints its mount tag on the serial port. Flat 64-bit mode, no paging, loaded anywhere, needs a stack.
#
#   as -o guest.o unicorn_guest.S && objcopy -O binary -j .text guest.o guest.bin

        .intel_syntax noprefix
        .code64
        .set    VIRTIO_9P,  0x10491af4      # device id, vendor id: virtio 1.3, 4.1.2.1
        .set    WINDOW,     0xfe000000      # where this machine puts device memory
        .set    SERIAL,     0x3f8
        .set    COMMON,     1               # cfg_type of struct virtio_pci_cap: virtio 1.3, 4.1.4
        .set    DEVICE,     4

        # --- find the function: ebx = configuration address of its register 0 ---
        mov     ebx, 0x80000000
scan:   mov     eax, ebx
        call    config_read
        cmp     eax, VIRTIO_9P
        je      found
        add     ebx, 0x800                  # next slot
        cmp     ebx, 0x80010000
        jb      scan
        hlt

        # --- size BAR 4 (64 bits: BAR 5 is its upper half), place it, enable memory and bus master ---
found:  lea     eax, [rbx + 0x20]
        mov     ecx, -1
        call    config_write
        lea     eax, [rbx + 0x20]
        call    config_read
        and     eax, WINDOW                 # size mask and window: an aligned address
        mov     ebp, eax
        mov     ecx, eax
        lea     eax, [rbx + 0x20]
        call    config_write
        lea     eax, [rbx + 0x24]
        xor     ecx, ecx
        call    config_write
        lea     eax, [rbx + 0x04]
        mov     ecx, 6
        call    config_write

        # --- walk the capabilities: r12 = common configuration, r13 = device configuration ---
        lea     eax, [rbx + 0x34]
        call    config_read
next:   movzx   edi, al
        test    edi, edi
        jz      driver
        lea     eax, [rbx + rdi]
        call    config_read
        mov     esi, eax                    # id, next, length, cfg_type
        lea     eax, [rbx + rdi + 8]
        call    config_read                 # offset in the BAR
        add     eax, ebp
        cmp     sil, 0x09                   # vendor specific: one of virtio's
        jne     follow
        rol     esi, 8                      # cfg_type comes to the bottom
        cmp     sil, COMMON
        cmove   r12d, eax
        cmp     sil, DEVICE
        cmove   r13d, eax
        ror     esi, 8
follow: shr     esi, 8
        mov     eax, esi
        jmp     next

        # --- ACKNOWLEDGE, DRIVER (virtio 1.3, 3.1.1), then the mount tag: le16 length, bytes ---
driver: mov     byte ptr [r12 + 20], 0
        mov     byte ptr [r12 + 20], 1
        mov     byte ptr [r12 + 20], 3
        movzx   ecx, word ptr [r13]
        lea     rsi, [r13 + 2]
        mov     edx, SERIAL
        jecxz   done
print:  lodsb
        out     dx, al
        loop    print
done:   mov     al, 10                      # newline
        out     dx, al
        hlt

config_read:                                # eax = configuration address -> eax = its 32 bits
        mov     edx, 0xcf8
        out     dx, eax
        mov     edx, 0xcfc
        in      eax, dx
        ret

config_write:                               # eax = configuration address, ecx = its new 32 bits
        mov     edx, 0xcf8
        out     dx, eax
        mov     edx, 0xcfc
        mov     eax, ecx
        out     dx, eax
        ret
